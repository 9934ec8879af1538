//! Claims that wait: which one goes next, and which are folded into a later one.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, VecDeque},
    time::Duration,
};

use crate::domain::{
    names::SecretName,
    virtual_key::{Change, Order, Token},
};

/// The claims of one spool. Each waits in the queue of every name that it touches, in the order of the claims; different
/// names go side by side. Times are since a beginning of the caller's.
#[derive(Debug)]
pub struct Queue<P> {
    claims: BTreeMap<Token, Claim<P>>,
    names: HashMap<SecretName, VecDeque<Token>>,
    /// Those that are first in all their queues and are not under way, by when they may go.
    ready: BTreeSet<(Duration, Token)>,
    running: BTreeSet<Token>,
}

#[derive(Debug)]
struct Claim<P> {
    order: Order,
    not_before: Duration,
    tried: bool,
    payload: P,
}

// === impl Queue ===

impl<P> Default for Queue<P> {
    fn default() -> Self {
        Self { claims: BTreeMap::new(), names: HashMap::new(), ready: BTreeSet::new(), running: BTreeSet::new() }
    }
}

impl<P> Queue<P> {
    /// How many claims there are, those under way included.
    #[must_use]
    pub fn len(&self) -> usize {
        self.claims.len()
    }

    /// True if there is none.
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.claims.is_empty()
    }

    /// True if this claim is there.
    #[must_use]
    pub fn contains(&self, token: Token) -> bool {
        self.claims.contains_key(&token)
    }

    /// Adds a claim. A claim that comes later has a greater token, but for those that are put back in by hand, which take
    /// their place in the order.
    pub fn push(&mut self, token: Token, order: Order, payload: P) {
        for name in order.change.names() {
            let queue = self.names.entry(name.clone()).or_default();
            // Whoever is under way is not overtaken.
            let running = queue.front().is_some_and(|first| self.running.contains(first));
            let place = queue.partition_point(|other| *other < token).max(usize::from(running));
            if place == 0
                && let Some(displaced) = queue.front()
            {
                let not_before = self.claims.get(displaced).map(|claim| claim.not_before).unwrap_or_default();
                self.ready.remove(&(not_before, *displaced));
            }
            queue.insert(place, token);
        }
        self.claims.insert(token, Claim { order, not_before: Duration::ZERO, tried: false, payload });
        self.consider(token);
    }

    /// When the next claim may go; none if all that is left waits for those under way.
    #[must_use]
    pub fn next_at(&self) -> Option<Duration> {
        self.ready.first().map(|(at, _)| *at)
    }

    /// The next claim that may go now. Of waiting claims that set the value of the same secret with the same metadata, only
    /// the last is needed; never across a delete or a rename.
    #[must_use]
    pub fn choose(&self, now: Duration) -> Option<Token> {
        let (_, first) = self.ready.first().filter(|(at, _)| *at <= now)?;
        Some(self.last_of_run(*first))
    }

    /// The claim that was chosen is under way: it stays in its queues until it is done or goes back. Returns the older
    /// claims that were folded into it, which are gone from the queue.
    pub fn begin(&mut self, token: Token) -> Vec<P> {
        let mut folded = Vec::new();
        while let Some(older) = self.first_of(token).filter(|older| *older != token) {
            folded.extend(self.remove(older).map(|claim| claim.payload));
        }
        if let Some(claim) = self.claims.get(&token) {
            self.ready.remove(&(claim.not_before, token));
        }
        self.running.insert(token);
        folded
    }

    /// The claims that would be folded into this one if it began now.
    #[must_use]
    pub fn older_than(&self, token: Token) -> Vec<Token> {
        let Some(Change::Store(name)) = self.claims.get(&token).map(|claim| &claim.order.change) else {
            return Vec::new();
        };
        let queue = self.names.get(name).into_iter().flatten();
        queue.copied().take_while(|other| *other != token).collect()
    }

    /// What a claim asks for, and what the caller keeps with it.
    #[must_use]
    pub fn get(&self, token: Token) -> Option<(&Order, &P)> {
        self.claims.get(&token).map(|claim| (&claim.order, &claim.payload))
    }

    /// What the caller keeps with a claim.
    pub fn payload_mut(&mut self, token: Token) -> Option<&mut P> {
        self.claims.get_mut(&token).map(|claim| &mut claim.payload)
    }

    /// A claim is done: whoever waited behind it may go.
    pub fn done(&mut self, token: Token) -> Option<P> {
        self.remove(token).map(|claim| claim.payload)
    }

    /// A claim that was under way, or was chosen and did not begin, is tried again, not before this time; nor are those that
    /// would be folded into it.
    pub fn again(&mut self, token: Token, not_before: Duration) {
        self.running.remove(&token);
        let mut tokens = self.older_than(token);
        tokens.push(token);
        for token in tokens {
            if let Some(claim) = self.claims.get_mut(&token) {
                self.ready.remove(&(claim.not_before, token));
                claim.not_before = not_before;
                claim.tried = true;
            }
            self.consider(token);
        }
    }

    /// There is no more time: everything may go at once, those first that were never tried.
    pub fn hurry(&mut self) {
        self.ready.clear();
        let tokens: Vec<Token> = self.claims.keys().copied().collect();
        for token in tokens {
            if let Some(claim) = self.claims.get_mut(&token) {
                claim.not_before = Duration::from_nanos(u64::from(claim.tried));
            }
            self.consider(token);
        }
    }

    /// All claims in their order.
    pub fn iter(&self) -> impl Iterator<Item = (Token, &Order, &P)> {
        self.claims.iter().map(|(token, claim)| (*token, &claim.order, &claim.payload))
    }

    fn consider(&mut self, token: Token) {
        let Some(claim) = self.claims.get(&token).filter(|_| !self.running.contains(&token)) else { return };
        let first = |name: &SecretName| self.front(name) == Some(token);
        if claim.order.change.names().all(first) {
            self.ready.insert((claim.not_before, token));
        }
    }

    fn front(&self, name: &SecretName) -> Option<Token> {
        self.names.get(name).and_then(|queue| queue.front().copied())
    }

    /// The first claim of the queue of a claim that stores.
    fn first_of(&self, token: Token) -> Option<Token> {
        let order = &self.claims.get(&token)?.order;
        let Change::Store(name) = &order.change else { return None };
        self.front(name)
    }

    /// The last of the claims from this one on that set the same value with the same metadata.
    fn last_of_run(&self, first: Token) -> Token {
        let Some(claim) = self.claims.get(&first) else { return first };
        let Change::Store(name) = &claim.order.change else { return first };
        let Some(queue) = self.names.get(name) else { return first };
        let alike = |token: &&Token| {
            let other = self.claims.get(token).map(|claim| &claim.order);
            other.is_some_and(|Order { change, given, writer, operation: _ }| {
                matches!(change, Change::Store(_)) && *given == claim.order.given && *writer == claim.order.writer
            })
        };
        queue.iter().take_while(alike).last().copied().unwrap_or(first)
    }

    fn remove(&mut self, token: Token) -> Option<Claim<P>> {
        self.running.remove(&token);
        let claim = self.claims.remove(&token)?;
        self.ready.remove(&(claim.not_before, token));
        let mut freed = Vec::new();
        for name in claim.order.change.names() {
            if let Some(queue) = self.names.get_mut(name) {
                queue.retain(|other| *other != token);
                match queue.front() {
                    Some(next) => freed.push(*next),
                    None => drop(self.names.remove(name)),
                }
            }
        }
        for next in freed {
            self.consider(next);
        }
        Some(claim)
    }
}
