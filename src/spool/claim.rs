//! Taking entries: each is renamed to its identity before it is read, and stays under it until it is settled.

use std::{
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap},
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
/// So many names go by before others have a turn.
const AT_ONCE: usize = 256;
/// Files that stay where they are, and are remembered: they take no room from those that can be taken.
const REMEMBERED: usize = 16_384;
/// So often a directory is listed in one look, where much of it stays.
const MOST_ROUNDS: usize = 64;
/// So many files that cannot be taken end a look: it is not they, it is the directory.
const MOST_ERRORS: usize = 8;
/// A directory whose time did not change for as long holds what it held: several files may come within one tick of its
/// file system's clock.
const QUIET: Duration = Duration::from_secs(2);
/// So long a plain file stands still before it is taken.
const STANDS_STILL: Duration = Duration::from_secs(1);
/// A directory that changes while it is listed is listed again, so that an older file is not overlooked beside a newer one.
const MOST_LISTINGS: usize = 3;
/// So long after the last change of a hidden file nobody will rename it.
const ABANDONED_MS: u64 = 24 * 60 * 60 * 1000;
const ENTRY: &str = ".json";
const PLAIN: &str = ".key";

/// What is kept about a claim beside its file, behind its token.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Mark {
    /// Its secret was scheduled for deletion, and is being restored.
    Restored,
    /// Somebody wants it also where that overwrites something newer.
    Forced,
}

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
    /// Files that stay where they are, with their state.
    staying: BTreeMap<OsString, Stamp>,
    unreadable: usize,
    /// Plain files, with their state and since when it is the same.
    pending: BTreeMap<OsString, (Stamp, Instant)>,
    /// The state of the drop directory, since when it is the same, and whether all of it was looked at since.
    seen: Option<(Stamp, Instant, bool)>,
    waiting: usize,
    ignored: usize,
    /// Files that nobody had touched for long at the last look, although they were to be renamed.
    abandoned: BTreeSet<OsString>,
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
    /// True if it may have been sent before, or another of its name before it: claimed before this process, put back, or read
    /// only now.
    pub resumed: bool,
    /// True if its secret is being restored.
    pub restored: bool,
    /// True if it may overwrite something newer.
    pub forced: bool,
}

/// How a look is meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Look {
    /// How many more claims may be held.
    pub room: usize,
    /// The wall clock, in milliseconds since the Unix epoch.
    pub now_ms: u64,
    /// True if there will be no other one: plain files are taken as they are.
    pub last: bool,
}

/// What a look at the spool found.
#[derive(Debug, Default)]
pub struct Scan {
    /// New claims, in their order.
    pub claimed: Vec<Claimed>,
    /// New claims that are none.
    pub rejected: Vec<(Claimed, Rejection)>,
    /// Entries that wait in the drop directory, since there is no room for more claims.
    pub crowded: usize,
    /// Entries that wait in the drop directory, since they do not stand still yet.
    pub unsettled: usize,
    /// Files that keytide may not read, and which stay.
    pub unreadable: usize,
    /// Files that are no entries by their names, and directories.
    pub ignored: usize,
    /// What somebody should hear of now.
    pub remarks: Vec<String>,
    /// When to look again for something that is not yet ready.
    pub again: Option<Duration>,
    /// Why not all could be looked at or taken.
    pub trouble: Option<SpoolError>,
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
            staying: BTreeMap::new(),
            unreadable: 0,
            pending: BTreeMap::new(),
            seen: None,
            waiting: 0,
            ignored: 0,
            abandoned: BTreeSet::new(),
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

    /// True if the file system tells of what other machines do to it too, or is none that other machines see.
    #[must_use]
    pub fn gives_events(&self) -> bool {
        self.drop.is_local()
    }

    /// The failed entries.
    pub fn failed(&mut self) -> &mut Failed {
        &mut self.failed
    }

    /// The claims of a process before this one, in their order.
    ///
    /// # Errors
    /// If the directory cannot be read.
    pub fn recover(&mut self) -> Result<Vec<Claimed>, SpoolError> {
        let mut marks = Vec::new();
        let mut claims = BTreeMap::new();
        for name in self.claimed.raw_names()? {
            if let Some(mark) = Mark::of(&name) {
                marks.push(mark);
            } else if let Some((token, name)) = split(&name) {
                claims.insert(token, name);
            }
        }
        for (token, mark) in marks.iter().filter(|(token, _)| !claims.contains_key(token)) {
            self.claimed.remove(mark.file(*token))?;
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
                restored: marks.contains(&(token, Mark::Restored)),
                forced: marks.contains(&(token, Mark::Forced)),
            });
        }
        Ok(recovered)
    }

    /// Looks what there is, and claims as much as there is room for, in the byte order of the names. Others have their turn
    /// in between. What was claimed is in the answer, whatever went wrong after it.
    pub async fn scan(&mut self, look: Look) -> Scan {
        let mut scan = Scan::default();
        match self.try_scan(look, &mut scan).await {
            Ok(()) => {}
            Err(error) => {
                self.seen = None;
                scan.trouble = Some(error);
            }
        }
        (scan.unreadable, scan.ignored) = (self.unreadable, self.ignored);
        (scan.crowded, scan.unsettled) = (self.waiting, self.pending.len());
        scan
    }

    async fn try_scan(&mut self, look: Look, scan: &mut Scan) -> Result<(), SpoolError> {
        self.check_place()?;
        self.take_back(look, scan)?;
        if self.is_unchanged(look)? {
            return Ok(());
        }
        let before = self.seen.take();
        let (mut left, mut errors) = (look.room, 0);
        for _ in 0..MOST_ROUNDS {
            let candidates = self.list(left).await?;
            self.pending.retain(|name, _| candidates.binary_search(name).is_ok());
            let more = self.waiting > 0;
            for (i, name) in candidates.iter().enumerate() {
                if i % AT_ONCE == AT_ONCE - 1 {
                    yield_now().await;
                }
                if left == 0 {
                    self.waiting += 1;
                    continue;
                }
                match self.consider(name, look, scan) {
                    Ok(taken) => left -= usize::from(taken),
                    Err(error) => {
                        scan.trouble = Some(error);
                        errors += 1;
                    }
                }
                if errors >= MOST_ERRORS {
                    break;
                }
            }
            // Some of those that came first stay where they are: there is room for others behind them.
            if left == 0 || !more || errors > 0 {
                break;
            }
        }
        if left < look.room {
            self.claimed.sync()?;
        }
        if scan.trouble.is_none() {
            self.seen = before;
        }
        Ok(())
    }

    /// The path must still lead to the directory that is held: everything that was taken is in it.
    fn check_place(&mut self) -> Result<(), SpoolError> {
        if self.drop.is_in_place()? {
            return Ok(());
        }
        Err(SpoolError::Replaced(self.drop.path().display().to_string()))
    }

    /// True if a look would find what the last one found.
    fn is_unchanged(&mut self, look: Look) -> Result<bool, SpoolError> {
        let stamp = self.drop.itself()?.stamp;
        let now = Instant::now();
        let known = self.seen.filter(|(seen, _, _)| *seen == stamp);
        let (since, whole) = known.map_or((now, false), |(_, since, whole)| (since, whole));
        let mut same = whole && self.waiting == 0 && self.pending.is_empty() && !look.last;
        // Becoming readable changes a file, not its directory.
        for (name, stamp) in &self.staying {
            same = same && self.drop.find(name)?.is_some_and(|found| found.stamp == *stamp);
        }
        let quiet = known.is_some() && now.saturating_duration_since(since) >= QUIET;
        self.seen = Some((stamp, since, same || quiet));
        Ok(same)
    }

    /// The first names by their bytes, as many as there is room for, and those that stayed; the others are counted.
    async fn list(&mut self, room: usize) -> Result<Vec<OsString>, SpoolError> {
        for _ in 1..MOST_LISTINGS {
            let before = self.drop.itself()?.stamp;
            let names = self.list_once(room).await?;
            if self.drop.itself()?.stamp == before {
                return Ok(names);
            }
        }
        self.list_once(room).await
    }

    async fn list_once(&mut self, room: usize) -> Result<Vec<OsString>, SpoolError> {
        let mut first: BinaryHeap<ByBytes> = BinaryHeap::new();
        let mut stayed = BTreeMap::new();
        let mut unreadable = 0;
        (self.waiting, self.ignored) = (0, 0);
        let mut listing = self.drop.listing()?;
        loop {
            let names = listing.next(AT_ONCE)?;
            if names.is_empty() {
                break;
            }
            for name in names {
                if name.as_bytes().starts_with(b".") || name == OsStr::new(FAILED) {
                    continue;
                }
                let is_entry = has_suffix(&name, ENTRY) || (self.plain_files && has_suffix(&name, PLAIN));
                if !is_entry {
                    self.ignored += 1;
                    continue;
                }
                if let Some(stamp) = self.staying.get(&name)
                    && let Some(found) = self.drop.find(&name)?
                    && found.stamp == *stamp
                {
                    unreadable += usize::from(!found.is_directory);
                    self.ignored += usize::from(found.is_directory);
                    stayed.insert(name, found.stamp);
                    continue;
                }
                first.push(ByBytes(name));
                if first.len() > room.max(AT_ONCE) {
                    first.pop();
                    self.waiting += 1;
                }
            }
            yield_now().await;
        }
        (self.staying, self.unreadable) = (stayed, unreadable);
        Ok(first.into_sorted_vec().into_iter().map(|name| name.0).collect())
    }

    /// Takes a file, if it is one that can be taken; true if it did.
    fn consider(&mut self, name: &OsString, look: Look, scan: &mut Scan) -> Result<bool, SpoolError> {
        let Some(found) = self.drop.find(name)? else { return Ok(false) };
        let readable = !found.is_file || is_readable(&found);
        if found.is_directory || !readable {
            if readable {
                self.ignored += 1;
            } else {
                self.unreadable += 1;
                if self.unreadable <= MOST_ERRORS {
                    scan.remarks.push(unreadable_remark(name, &found));
                }
            }
            if self.staying.len() < REMEMBERED {
                self.staying.insert(name.clone(), found.stamp);
            }
            return Ok(false);
        }
        if has_suffix(name, PLAIN) && found.is_file && !look.last {
            let now = Instant::now();
            let known = self.pending.get(name).filter(|(stamp, _)| *stamp == found.stamp);
            let since = known.map_or(now, |(_, since)| *since);
            let left = STANDS_STILL.saturating_sub(now.saturating_duration_since(since));
            if !left.is_zero() {
                scan.again = Some(scan.again.map_or(left, |again| again.min(left)));
                self.pending.insert(name.clone(), (found.stamp, since));
                return Ok(false);
            }
        }
        self.claim(name, &found, look.now_ms, scan)
    }

    /// Renames an entry to its identity; false if it is gone.
    fn claim(&mut self, name: &OsStr, found: &Found, now_ms: u64, scan: &mut Scan) -> Result<bool, SpoolError> {
        let token = self.tokens.next(now_ms, &mut self.random);
        let short = shortened(name);
        if !self.drop.move_to(name, &self.claimed, &claim_name(token, &short))? {
            return Ok(false);
        }
        self.pending.remove(name);
        let claim = Claimed {
            token,
            name: short,
            dropped_ms: found.changed_ms,
            resumed: false,
            restored: false,
            forced: false,
        };
        if name.len() > LONGEST_NAME {
            let message = format!("the name of the file is longer than {LONGEST_NAME} bytes");
            scan.rejected.push((claim, Rejection { reason: RejectionReason::Malformed, message }));
        } else {
            scan.claimed.push(claim);
        }
        Ok(true)
    }

    /// Takes failed entries back that somebody wants to be tried again: under their own identity, so that AWS recognises
    /// what was written; where that is forced, under a new one.
    fn take_back(&mut self, look: Look, scan: &mut Scan) -> Result<(), SpoolError> {
        let mut names = self.retry.raw_names()?;
        names.sort_unstable();
        for file in names {
            let Some((token, name)) = split(&file) else { continue };
            let old = token;
            let marked = |mark: Mark| Ok::<_, SpoolError>(self.retry.find(OsStr::new(&mark.file(old)))?.is_some());
            let (forced, restored) = (marked(Mark::Forced)?, marked(Mark::Restored)?);
            let token = if forced {
                let new = self.tokens.next(look.now_ms, &mut self.random);
                self.claimed.touch(&Mark::Forced.file(new))?;
                new
            } else {
                self.tokens.seen(token);
                token
            };
            if restored {
                self.claimed.touch(&Mark::Restored.file(token))?;
            }
            let new_file = claim_name(token, &name);
            if self.retry.move_to(&file, &self.claimed, &new_file)? {
                let dropped_ms = self.claimed.find(&new_file)?.map_or(0, |found| found.changed_ms);
                scan.claimed.push(Claimed { token, name, dropped_ms, resumed: true, restored, forced });
            }
            for mark in [Mark::Forced, Mark::Restored] {
                self.retry.remove(mark.file(old))?;
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
        let (mut open, found) = match self.claimed.open_file(&file) {
            Ok(open) => open,
            Err(error) if error.is_denied() => {
                let message = "keytide may not read the file any more: its producer must leave it readable (0644)";
                return reject(RejectionReason::Unreadable, message.to_owned());
            }
            Err(error) => return Err(error.into()),
        };
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
        self.unmark(claim)
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
        if claim.restored {
            // Whoever tries it again makes the rest of its secret equal. A full disk costs that, not the entry.
            drop(self.failed.directory.touch(&Mark::Restored.file(claim.token)));
        }
        self.failed.take(&self.claimed, claim, rejection, subject, now_ms)?;
        self.unmark(claim)
    }

    /// Keeps something about a claim, or that it is no longer so.
    ///
    /// # Errors
    /// If that cannot be kept.
    pub fn mark(&mut self, token: Token, mark: Mark, is_so: bool) -> Result<(), SpoolError> {
        if is_so {
            self.claimed.touch(&mark.file(token))?;
        } else {
            self.claimed.remove(mark.file(token))?;
        }
        Ok(self.claimed.sync()?)
    }

    /// Removes what was kept long enough: failed entries, and what writers that were killed left in the drop directory. How many
    /// failed entries that were.
    ///
    /// # Errors
    /// If a directory cannot be read.
    pub fn sweep(&mut self, now_ms: u64) -> Result<usize, SpoolError> {
        let is_old =
            |changed_ms: i64| u64::try_from(changed_ms).is_ok_and(|at| at.saturating_add(ABANDONED_MS) < now_ms);
        let mut abandoned = BTreeSet::new();
        for name in self.drop.raw_names()?.into_iter().filter(|name| name.as_bytes().starts_with(b".")) {
            if self.drop.find(&name)?.is_some_and(|found| !found.is_directory && is_old(found.changed_ms)) {
                if self.abandoned.contains(&name) {
                    self.drop.remove(&name)?;
                } else {
                    abandoned.insert(name);
                }
            }
        }
        self.abandoned = abandoned;
        self.failed.sweep(now_ms)
    }

    fn unmark(&self, claim: &Claimed) -> Result<(), SpoolError> {
        let marks = [(claim.restored, Mark::Restored), (claim.forced, Mark::Forced)];
        for (_, mark) in marks.into_iter().filter(|(marked, _)| *marked) {
            self.claimed.remove(mark.file(claim.token))?;
        }
        Ok(())
    }
}

// === impl Mark ===

impl Mark {
    const fn suffix(self) -> &'static str {
        match self {
            Self::Restored => ".restored",
            Self::Forced => ".forced",
        }
    }

    /// The name of its file.
    #[must_use]
    pub fn file(self, token: Token) -> String {
        format!("{token}{}", self.suffix())
    }

    /// The mark whose file has this name.
    fn of(name: &OsStr) -> Option<(Token, Self)> {
        let name = name.to_str()?;
        let mark = [Self::Restored, Self::Forced].into_iter().find(|mark| name.ends_with(mark.suffix()))?;
        Some((Token::parse(name.strip_suffix(mark.suffix())?)?, mark))
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
