//! Taking entries: each is renamed to its identity before it is read, and stays under it until it is settled.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BinaryHeap},
    ffi::{OsStr, OsString},
    io::Read as _,
    os::unix::ffi::{OsStrExt as _, OsStringExt as _},
    path::Path,
    time::Duration,
};

use tokio::{task::yield_now, time::Instant};
use zeroize::Zeroizing;

use super::{CLAIMED, FAILED, Failed, RETRY, SpoolError, drop_directory, entry, own_directory, shown};
use crate::{
    domain::{
        value::SecretValue,
        virtual_key::{Draft, Rejection, RejectionReason, Token, Tokens},
    },
    output::directory::{Directory, DirectoryError, Found, Stamp},
    plan::naming,
};

/// Of a producer's name, in bytes: with token and suffix it must fit into 255.
const LONGEST_NAME: usize = 200;
/// So many names, or claims, go by before others have a turn.
const AT_ONCE: usize = 64;
/// Files that stay where they are, and are remembered so that each is spoken of once.
const REMEMBERED: usize = 1024;
/// A directory whose time did not change for as long holds what it held: several files may come within one tick of its
/// file system's clock.
const QUIET: Duration = Duration::from_secs(2);
/// So long a plain file stands still before it is taken.
const STANDS_STILL: Duration = Duration::from_secs(1);
/// Behind the token of a claim whose secret is being restored.
const MARK: &str = ".restored";
const ENTRY: &str = ".json";
const PLAIN: &str = ".key";

/// The spool, with the handles that are held from the start.
#[derive(Debug)]
pub struct Spool {
    drop: Directory,
    claimed: Directory,
    retry: Directory,
    failed: Failed,
    plain_files: bool,
    tokens: Tokens,
    random: fastrand::Rng,
    /// Files that keytide may not read, with their state.
    unreadable: BTreeMap<OsString, Stamp>,
    /// Plain files, with their state and since when it is the same.
    pending: BTreeMap<OsString, (Stamp, Instant)>,
    /// The state of the drop directory, since when it is the same, and whether all of it was looked at since.
    seen: Option<(Stamp, Instant, bool)>,
    waiting: usize,
    ignored: usize,
    cannot_take: bool,
}

/// An entry that is keytide's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Claimed {
    /// Its identity.
    pub token: Token,
    /// The name that its producer gave it.
    pub name: OsString,
    /// When it was dropped, in milliseconds since the Unix epoch.
    pub dropped_ms: i64,
    /// True if it was claimed before this process, or put back: it may have been sent before.
    pub resumed: bool,
    /// True if its secret is being restored.
    pub restored: bool,
}

/// What a look at the spool found.
#[derive(Debug, Default)]
pub struct Scan {
    /// New claims, in their order.
    pub claimed: Vec<Claimed>,
    /// Entries that wait in the drop directory, for there is no room for more claims.
    pub waiting: usize,
    /// Files that keytide may not read, and which stay.
    pub unreadable: usize,
    /// Files that are no entries by their names.
    pub ignored: usize,
    /// What somebody should hear of now.
    pub remarks: Vec<String>,
    /// When to look again for something that is not yet ready.
    pub again: Option<Duration>,
}

// === impl Spool ===

impl Spool {
    /// Opens the spool; makes its directories where they are missing.
    ///
    /// # Errors
    /// If it cannot be used.
    pub fn open(path: &Path, allow_disk: bool, plain_files: bool, random: fastrand::Rng) -> Result<Self, SpoolError> {
        let drop = drop_directory(path, allow_disk)?;
        let claimed = own_directory(&drop, CLAIMED, 0o700)?;
        let retry = own_directory(&drop, RETRY, 0o700)?;
        let failed = Failed::open(&drop)?;
        Ok(Self {
            drop,
            claimed,
            retry,
            failed,
            plain_files,
            tokens: Tokens::default(),
            random,
            unreadable: BTreeMap::new(),
            pending: BTreeMap::new(),
            seen: None,
            waiting: 0,
            ignored: 0,
            cannot_take: false,
        })
    }

    /// The drop directory.
    #[must_use]
    pub fn path(&self) -> &Path {
        self.drop.path()
    }

    /// Where failed entries are tried again from: to be watched beside the drop directory.
    #[must_use]
    pub fn retry_path(&self) -> &Path {
        self.retry.path()
    }

    /// The failed entries.
    #[must_use]
    pub fn failed(&self) -> &Failed {
        &self.failed
    }

    /// The claims of a process before this one, in their order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn recover(&mut self) -> Result<Vec<Claimed>, SpoolError> {
        let mut marks = Vec::new();
        let mut claims = BTreeMap::new();
        for name in self.claimed.raw_names()? {
            if let Some(token) = name.to_str().and_then(|name| Token::parse(name.strip_suffix(MARK)?)) {
                marks.push(token);
            } else if let Some((token, name)) = split(&name) {
                claims.insert(token, name);
            }
        }
        let mut recovered = Vec::with_capacity(claims.len());
        for (token, name) in claims {
            self.tokens.seen(token);
            let found = self.claimed.find(&claim_name(token, &name))?;
            recovered.push(Claimed {
                token,
                name,
                dropped_ms: found.map_or(0, |found| found.changed_ms),
                resumed: true,
                restored: marks.contains(&token),
            });
        }
        for mark in marks.iter().filter(|mark| !recovered.iter().any(|claim| claim.token == **mark)) {
            self.claimed.remove(mark_name(*mark))?;
        }
        Ok(recovered)
    }

    /// Looks what there is, and claims as much as there is room for, in the byte order of the names. Others have their turn
    /// in between.
    ///
    /// # Errors
    /// If the spool cannot be read, or nothing can be taken from it.
    pub async fn scan(&mut self, room: usize, now_ms: u64) -> Result<Scan, SpoolError> {
        self.drop.refresh()?;
        let mut scan = Scan::default();
        self.take_back(&mut scan)?;
        if self.is_unchanged()? {
            (scan.waiting, scan.ignored, scan.unreadable) = (self.waiting, self.ignored, self.unreadable.len());
            return Ok(scan);
        }
        let candidates = self.candidates(room, &mut scan).await?;
        let mut unreadable = BTreeMap::new();
        let mut pending = BTreeMap::new();
        let mut taken = 0_usize;
        for (i, name) in candidates.into_iter().enumerate() {
            if i % AT_ONCE == AT_ONCE - 1 {
                yield_now().await;
            }
            let Some(found) = self.drop.find(&name)? else { continue };
            if found.is_directory {
                scan.ignored += 1;
                continue;
            }
            if found.is_file && !is_readable(&found) {
                if self.unreadable.get(&name) != Some(&found.stamp) {
                    scan.remarks.push(unreadable_remark(&name, &found));
                }
                if unreadable.len() < REMEMBERED {
                    unreadable.insert(name, found.stamp);
                }
                continue;
            }
            if has_suffix(&name, PLAIN) && found.is_file {
                let now = Instant::now();
                let since =
                    self.pending.get(&name).filter(|(stamp, _)| *stamp == found.stamp).map_or(now, |(_, at)| *at);
                let left = STANDS_STILL.saturating_sub(now.saturating_duration_since(since));
                if !left.is_zero() {
                    scan.again = Some(scan.again.map_or(left, |again| again.min(left)));
                    pending.insert(name, (found.stamp, since));
                    continue;
                }
            }
            taken += usize::from(self.claim(&name, &found, now_ms, &mut scan)?);
        }
        if taken > 0 {
            self.claimed.sync()?;
        }
        scan.unreadable = unreadable.len();
        (self.waiting, self.ignored, self.unreadable, self.pending) = (scan.waiting, scan.ignored, unreadable, pending);
        Ok(scan)
    }

    /// True if a look would find what the last one found.
    fn is_unchanged(&mut self) -> Result<bool, SpoolError> {
        let stamp = self.drop.itself()?.stamp;
        let now = Instant::now();
        let known = self.seen.filter(|(seen, _, _)| *seen == stamp);
        let (since, whole) = known.map_or((now, false), |(_, since, whole)| (since, whole));
        let mut same = whole && self.waiting == 0 && self.pending.is_empty();
        // Becoming readable changes a file, not its directory.
        for (name, stamp) in &self.unreadable {
            same = same && self.drop.find(name)?.is_some_and(|found| found.stamp == *stamp);
        }
        let quiet = known.is_some() && now.saturating_duration_since(since) >= QUIET;
        self.seen = Some((stamp, since, quiet));
        Ok(same)
    }

    /// The first names by their bytes, as many as there is room for; the others are counted.
    async fn candidates(&mut self, room: usize, scan: &mut Scan) -> Result<Vec<OsString>, SpoolError> {
        let mut first: BinaryHeap<ByBytes> = BinaryHeap::new();
        let mut all = 0_usize;
        let plain_files = self.plain_files;
        let mut names = Vec::new();
        self.drop.visit(|name| {
            let hidden = name.as_bytes().first() == Some(&b'.') || name == OsStr::new(FAILED);
            if hidden {
                return true;
            }
            let is_entry = has_suffix(name, ENTRY) || (plain_files && has_suffix(name, PLAIN));
            if !is_entry {
                scan.ignored += 1;
                return true;
            }
            all += 1;
            // Files that stay take no room from those that can be taken.
            first.push(ByBytes(name.to_owned()));
            if first.len() > room.saturating_add(REMEMBERED) {
                first.pop();
            }
            true
        })?;
        yield_now().await;
        names.extend(first.into_sorted_vec().into_iter().map(|name| name.0));
        let staying = |name: &&OsString| self.unreadable.contains_key(*name);
        let mut left = room;
        let mut chosen = Vec::with_capacity(names.len().min(room.saturating_add(self.unreadable.len())));
        for name in names {
            let stays = staying(&&name);
            if stays || left > 0 {
                left = left.saturating_sub(usize::from(!stays));
                chosen.push(name);
            }
        }
        scan.waiting = all.saturating_sub(chosen.len());
        Ok(chosen)
    }

    /// Renames an entry to its identity; false if it is gone.
    fn claim(&mut self, name: &OsStr, found: &Found, now_ms: u64, scan: &mut Scan) -> Result<bool, SpoolError> {
        let token = self.tokens.next(now_ms, &mut self.random);
        let short = shortened(name);
        let moved = self.drop.move_to(name, &self.claimed, &claim_name(token, &short));
        match moved {
            Ok(true) => self.cannot_take = false,
            Ok(false) => return Ok(false),
            Err(error) => {
                self.cannot_take = true;
                return Err(error.into());
            }
        }
        let claim = Claimed { token, name: short, dropped_ms: found.changed_ms, resumed: false, restored: false };
        if name.len() > LONGEST_NAME {
            let message = format!("the name of the file is longer than {LONGEST_NAME} bytes");
            self.fail(&claim, &Rejection { reason: RejectionReason::Malformed, message }, None, now_ms)?;
            scan.remarks.push(format!("entry {} failed: its file's name is too long", shown(&claim.name)));
            return Ok(true);
        }
        scan.claimed.push(claim);
        Ok(true)
    }

    /// Takes failed entries back that somebody wants to be tried again.
    fn take_back(&mut self, scan: &mut Scan) -> Result<(), SpoolError> {
        let mut names = self.retry.raw_names()?;
        names.sort_unstable();
        for file in names {
            let Some((token, name)) = split(&file) else { continue };
            if self.retry.move_to(&file, &self.claimed, &file)? {
                let dropped_ms = self.claimed.find(&file)?.map_or(0, |found| found.changed_ms);
                scan.claimed.push(Claimed { token, name, dropped_ms, resumed: true, restored: false });
            }
        }
        Ok(())
    }

    /// Reads an entry, which is keytide's by now but may still be written to by whoever made it.
    ///
    /// # Errors
    /// Within, if it is none; without, if it cannot be read for now.
    pub fn read(&self, claim: &Claimed) -> Result<Result<Draft, Rejection>, SpoolError> {
        let file = claim_name(claim.token, &claim.name);
        let reject = |reason, message: String| Ok(Err(Rejection { reason, message }));
        let Some(found) = self.claimed.find(&file)? else {
            return reject(RejectionReason::NotAFile, "the file is gone".to_owned());
        };
        if !found.is_file {
            let message = "expected a regular file: links, pipes, sockets and devices are not read";
            return reject(RejectionReason::NotAFile, message.to_owned());
        }
        let (mut open, found) = self.claimed.open_file(&file)?;
        if !found.is_file || found.links != 1 {
            let message = format!("expected a file with one name, it has {}", found.links);
            return reject(RejectionReason::NotAFile, message);
        }
        let plain = has_suffix(&claim.name, PLAIN);
        // A plain file may end in a line feed, which is not counted.
        let limit = if plain { naming::LONGEST_VALUE + 1 } else { entry::LARGEST };
        let most = u64::try_from(limit).unwrap_or(u64::MAX);
        let too_large = || reject(RejectionReason::TooLarge, format!("expected at most {limit} bytes"));
        if found.size > most {
            return too_large();
        }
        let expected = usize::try_from(found.size).unwrap_or(limit);
        // With room for a file that grows, so that no copy is left behind.
        let mut bytes = Zeroizing::new(Vec::with_capacity(expected.saturating_add(64)));
        let failed = |error| DirectoryError::Write { step: "read", path: self.claimed.path().join(&file), error };
        open.by_ref().take(most + 1).read_to_end(&mut bytes).map_err(failed)?;
        if bytes.len() > limit {
            return too_large();
        }
        if plain {
            return Ok(plain_entry(&claim.name, &bytes));
        }
        Ok(entry::parse(&bytes))
    }

    /// AWS confirmed it, or it was folded: the entry is removed.
    ///
    /// # Errors
    /// If it cannot be removed.
    pub fn settle(&mut self, claim: &Claimed) -> Result<(), SpoolError> {
        self.claimed.remove(claim_name(claim.token, &claim.name))?;
        if claim.restored {
            self.claimed.remove(mark_name(claim.token))?;
        }
        Ok(())
    }

    /// It can never succeed: it is moved to the failed entries, with its reason.
    ///
    /// # Errors
    /// If it cannot be moved; that the reason could not be written is no error.
    pub fn fail(
        &mut self,
        claim: &Claimed,
        rejection: &Rejection,
        subject: Option<&str>,
        now_ms: u64,
    ) -> Result<(), SpoolError> {
        self.failed.take(&self.claimed, claim, rejection, subject, now_ms)?;
        if claim.restored {
            self.claimed.remove(mark_name(claim.token))?;
        }
        Ok(())
    }

    /// Keeps that the secret of a claim is being restored.
    ///
    /// # Errors
    /// If that cannot be kept.
    pub fn mark(&mut self, token: Token) -> Result<(), SpoolError> {
        self.claimed.touch(&mark_name(token))?;
        Ok(self.claimed.sync()?)
    }
}

/// Names in the order of their bytes, whatever the locale.
#[derive(PartialEq, Eq)]
struct ByBytes(OsString);

impl Ord for ByBytes {
    fn cmp(&self, other: &Self) -> Ordering {
        self.0.as_bytes().cmp(other.0.as_bytes())
    }
}

impl PartialOrd for ByBytes {
    fn partial_cmp(&self, other: &Self) -> Option<Ordering> {
        Some(self.cmp(other))
    }
}

/// The name of a claim's file.
pub(super) fn claim_name(token: Token, name: &OsStr) -> OsString {
    let mut file = OsString::from(format!("{token}~"));
    file.push(name);
    file
}

/// The token and the producer's name of a claim's file.
pub(super) fn split(file: &OsStr) -> Option<(Token, OsString)> {
    let (token, name) = file.as_bytes().split_at_checked(36)?;
    let token = Token::parse(std::str::from_utf8(token).ok()?)?;
    Some((token, OsString::from_vec(name.strip_prefix(b"~")?.to_vec())))
}

fn mark_name(token: Token) -> String {
    format!("{token}{MARK}")
}

fn shortened(name: &OsStr) -> OsString {
    let bytes = name.as_bytes();
    OsString::from_vec(bytes.get(..LONGEST_NAME).unwrap_or(bytes).to_vec())
}

fn has_suffix(name: &OsStr, suffix: &str) -> bool {
    name.as_bytes().strip_suffix(suffix.as_bytes()).is_some_and(|stem| !stem.is_empty())
}

fn plain_entry(name: &OsStr, bytes: &[u8]) -> Result<Draft, Rejection> {
    let malformed = |message: &str| Rejection { reason: RejectionReason::Malformed, message: message.to_owned() };
    let alias = name.to_str().and_then(|name| name.strip_suffix(PLAIN));
    let alias = alias.ok_or_else(|| malformed("the name of the file is not UTF-8"))?;
    let value = bytes.strip_suffix(b"\n").unwrap_or(bytes);
    let value = std::str::from_utf8(value).map_err(|_| malformed("not UTF-8"))?;
    Ok(naming::plain(alias.to_owned(), SecretValue::new(value.to_owned())))
}

/// Whether the system would let keytide read a file, by its mode and owners.
fn is_readable(found: &Found) -> bool {
    let own = rustix::process::geteuid().as_raw();
    let of_group = || {
        let group = found.group;
        rustix::process::getegid().as_raw() == group
            || rustix::process::getgroups().is_ok_and(|groups| groups.iter().any(|one| one.as_raw() == group))
    };
    let bit = if own == found.owner {
        0o400
    } else if of_group() {
        0o040
    } else {
        0o004
    };
    own == 0 || found.mode & bit != 0
}

fn unreadable_remark(name: &OsStr, found: &Found) -> String {
    let Found { mode, owner, group, .. } = found;
    format!(
        "file {} stays in the spool, since keytide (user {}) may not read it: mode {mode:04o}, user {owner}, group {group}; \
         its producer must make it readable before it renames it (chmod o+r)",
        shown(name),
        rustix::process::geteuid().as_raw(),
    )
}
