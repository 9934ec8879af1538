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
    /// Boxed: the nodes of the tree are half empty, and a full spool has thousands.
    claims: BTreeMap<Token, Box<Claim<P>>>,
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
            // Nearly every name has one claim.
            let queue = self.names.entry(name.clone()).or_insert_with(|| VecDeque::with_capacity(1));
            // Whoever is under way is not overtaken.
            let running = usize::from(queue.front().is_some_and(|first| self.running.contains(first)));
            let place = queue.len() - queue.iter().skip(running).rev().take_while(|other| **other > token).count();
            if place == 0
                && let Some(displaced) = queue.front()
            {
                let not_before = self.claims.get(displaced).map(|claim| claim.not_before).unwrap_or_default();
                self.ready.remove(&(not_before, *displaced));
            }
            queue.insert(place, token);
        }
        self.claims.insert(token, Box::new(Claim { order, not_before: Duration::ZERO, tried: false, payload }));
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
    /// would be folded into it. It goes behind those that came to stand behind it although they are older: were it first in
    /// one queue and not in another, claims could wait for each other for ever.
    pub fn again(&mut self, token: Token, not_before: Duration) {
        self.running.remove(&token);
        let mut concerned = self.older_than(token);
        concerned.push(token);
        for token in &concerned {
            if let Some(claim) = self.claims.get_mut(token) {
                self.ready.remove(&(claim.not_before, *token));
                (claim.not_before, claim.tried) = (not_before, true);
            }
        }
        let Some(claim) = self.claims.get(&token) else { return };
        let names: Vec<SecretName> = claim.order.change.names().cloned().collect();
        for name in &names {
            if let Some(queue) = self.names.get_mut(name) {
                queue.make_contiguous().sort_unstable();
            }
        }
        for first in names.iter().filter_map(|name| self.front(name)).collect::<Vec<_>>() {
            self.consider(first);
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
        Some(*claim)
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;
    use crate::domain::virtual_key::{Given, Operation, Tokens};

    /// The same without any cleverness: a claim may go if none before it touches one of its names.
    #[derive(Debug, Default)]
    struct Naive(BTreeMap<Token, Waiting>);

    #[derive(Debug)]
    struct Waiting {
        order: Order,
        not_before: Duration,
        tried: bool,
        running: bool,
    }

    #[derive(Debug, Clone)]
    enum Act {
        /// A claim with the next token, or with one that was left out before.
        Push(Order, bool),
        Take,
        Done(usize),
        Again(usize, u64),
        Hurry,
        Pass(u64),
    }

    // === impl Naive ===

    impl Naive {
        fn touch_the_same(a: &Order, b: &Order) -> bool {
            a.change.names().any(|name| b.change.names().any(|other| other == name))
        }

        fn is_ready(&self, token: Token) -> bool {
            let claim = &self.0[&token];
            let before = |(other, it): (&Token, &Waiting)| {
                *other != token && (it.running || *other < token) && Self::touch_the_same(&it.order, &claim.order)
            };
            !claim.running && !self.0.iter().any(before)
        }

        fn next(&self) -> Option<(Duration, Token)> {
            let ready = self.0.keys().filter(|token| self.is_ready(**token));
            ready.map(|token| (self.0[token].not_before, *token)).min()
        }

        fn take(&mut self, now: Duration) -> Option<(Token, Vec<Token>)> {
            let (_, first) = self.next().filter(|(at, _)| *at <= now)?;
            let mut run = vec![first];
            let order = self.0[&first].order.clone();
            if matches!(order.change, Change::Store(_)) {
                let others = self.0.range(first..).skip(1).filter(|(_, it)| Self::touch_the_same(&it.order, &order));
                let alike = |it: &Waiting| {
                    let Order { change, given, writer, .. } = &it.order;
                    *change == order.change && *given == order.given && *writer == order.writer
                };
                run.extend(others.take_while(|(_, it)| alike(it)).map(|(token, _)| *token));
            }
            let last = run.pop().unwrap();
            for token in &run {
                self.0.remove(token);
            }
            self.0.get_mut(&last).unwrap().running = true;
            Some((last, run))
        }

        fn running(&self) -> Vec<Token> {
            self.0.iter().filter(|(_, it)| it.running).map(|(token, _)| *token).collect()
        }
    }

    fn orders() -> impl Strategy<Value = Order> {
        let name = || (0..4_u8).prop_map(|i| SecretName::parse(format!("keys/{i}")).unwrap());
        let change = prop_oneof![
            6 => name().prop_map(Change::Store),
            2 => (name(), name(), any::<bool>())
                .prop_filter("two names", |(from, to, _)| from != to)
                .prop_map(|(from, to, valued)| Change::Move { from, to, valued }),
            1 => name().prop_map(|name| Change::Delete { name, days: 7 }),
        ];
        let writer = prop_oneof![5 => Just(None), 1 => Just(Some(0))];
        (change, 0..5_u8, writer).prop_map(|(change, given, writer)| {
            let given = (given == 0).then(|| Given { description: Some("x".to_owned()), ..Given::default() });
            Order { operation: Operation::Create, change, given: given.map(Box::new), writer }
        })
    }

    fn acts() -> impl Strategy<Value = Vec<Act>> {
        let act = prop_oneof![
            8 => (orders(), prop::bool::weighted(0.2)).prop_map(|(order, old)| Act::Push(order, old)),
            5 => Just(Act::Take),
            3 => (0..8_usize).prop_map(Act::Done),
            3 => (0..8_usize, 0..3000_u64).prop_map(|(i, delay)| Act::Again(i, delay)),
            1 => Just(Act::Hurry),
            3 => (0..2000_u64).prop_map(Act::Pass),
        ];
        vec(act, 0..80)
    }

    /// Tokens in their order; each other one is left out, for claims that are put back by hand.
    fn tokens() -> impl Iterator<Item = Token> {
        let (mut tokens, mut random) = (Tokens::default(), fastrand::Rng::with_seed(1));
        (0_u64..).map(move |i| tokens.next(1_793_491_200_000 + i, &mut random))
    }

    fn compare_takes(queue: &mut Queue<Token>, naive: &mut Naive, now: Duration) -> Option<(Token, Vec<Token>)> {
        assert_eq!(queue.next_at(), naive.next().map(|(at, _)| at));
        let taken = queue.choose(now).map(|token| {
            let older = queue.older_than(token);
            let folded = queue.begin(token);
            assert_eq!(folded, older);
            (token, folded)
        });
        assert_eq!(taken, naive.take(now));
        taken
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(1500))]

        #[test]
        fn the_queue_does_what_a_list_would(acts in acts()) {
            let (mut queue, mut naive) = (Queue::default(), Naive::default());
            let (mut fresh, mut old) = (tokens(), Vec::new());
            let mut now = Duration::ZERO;
            let (mut pushed, mut gone) = (BTreeSet::new(), BTreeSet::new());
            for act in acts {
                match act {
                    Act::Push(order, again) => {
                        let token = if again { old.pop() } else { None };
                        let token = token.unwrap_or_else(|| {
                            old.extend(fresh.next());
                            fresh.next().unwrap()
                        });
                        pushed.insert(token);
                        queue.push(token, order.clone(), token);
                        let waiting = Waiting { order, not_before: Duration::ZERO, tried: false, running: false };
                        naive.0.insert(token, waiting);
                    }
                    Act::Take => {
                        if let Some((_, folded)) = compare_takes(&mut queue, &mut naive, now) {
                            gone.extend(folded);
                        }
                    }
                    Act::Done(i) => {
                        let running = naive.running();
                        let Some(token) = running.get(i % running.len().max(1)) else { continue };
                        assert_eq!(queue.done(*token), Some(*token));
                        naive.0.remove(token);
                        gone.insert(*token);
                    }
                    Act::Again(i, delay) => {
                        let running = naive.running();
                        let Some(token) = running.get(i % running.len().max(1)) else { continue };
                        let at = now + Duration::from_millis(delay);
                        queue.again(*token, at);
                        let waiting = naive.0.get_mut(token).unwrap();
                        (waiting.not_before, waiting.tried, waiting.running) = (at, true, false);
                    }
                    Act::Hurry => {
                        queue.hurry();
                        for waiting in naive.0.values_mut() {
                            waiting.not_before = Duration::from_nanos(u64::from(waiting.tried));
                        }
                    }
                    Act::Pass(ms) => now += Duration::from_millis(ms),
                }
                prop_assert_eq!(queue.next_at(), naive.next().map(|(at, _)| at));
                prop_assert!(queue.iter().map(|(token, _, _)| token).eq(naive.0.keys().copied()));
            }
            // And nobody waits for ever.
            let now = Duration::from_hours(1);
            for token in naive.running() {
                queue.done(token);
                naive.0.remove(&token);
                gone.insert(token);
            }
            while let Some((token, folded)) = compare_takes(&mut queue, &mut naive, now) {
                queue.done(token);
                naive.0.remove(&token);
                gone.insert(token);
                gone.extend(folded);
            }
            prop_assert!(queue.is_empty(), "{:?}", queue);
            prop_assert_eq!(queue.next_at(), None);
            prop_assert_eq!(pushed, gone);
        }
    }
}
