//! What other providers sent lately: repeats are known, and what may not be executed twice is answered from memory.
//! PROTOCOL.md §4.
//!
//! Pure: the time is an argument. Most requests may be executed again without harm (reads; DSMessages and feed items, which
//! dedupe themselves): of those a repeat is only noticed. KeyPackage claims and connection requests ([`is_once`]) get the
//! answer of the first execution; an error is no answer, so a repeat of what failed is executed.
//!
//! Bounds and what happens beyond them: a sender's oldest ids are forgotten, then those of the sender that has most (a
//! repeat goes unnoticed, of what may be repeated); a sender's oldest answers, then the oldest of the one that holds
//! most bytes; an execution that cannot be kept track of is refused.
//!
//! Memory ends with the process. A request that was signed before this one started is executed if that is harmless; one
//! that is once only is refused, to be signed anew: then, unless it was signed ahead of this provider's clock, it was not taken
//! from what the process before had seen. Whoever could repeat one that was has its bytes: its own sender, who could as well
//! sign another.

use std::{
    collections::{HashMap, VecDeque},
    sync::Arc,
};

use crate::wire::{
    federation::EventType,
    ids::{Domain, RequestId, Timestamp},
};

use super::message::{FRESH_MS, MessageError};

/// A message is taken from five minutes before to five minutes after its timestamp.
pub const REMEMBERED_MS: u64 = 2 * FRESH_MS;

/// How much is remembered.
#[derive(Debug, Clone, Copy)]
pub struct ReplayLimits {
    pub ids_per_sender_max: usize,
    pub ids_max: usize,
    pub answers_per_sender_max: usize,
    pub answer_bytes_per_sender_max: usize,
    pub answer_bytes_max: usize,
}

impl Default for ReplayLimits {
    fn default() -> Self {
        Self {
            ids_per_sender_max: 128 * 1024,
            ids_max: 512 * 1024,
            answers_per_sender_max: 4096,
            answer_bytes_per_sender_max: 8 * 1024 * 1024,
            answer_bytes_max: 64 * 1024 * 1024,
        }
    }
}

/// Whether a repeat of `event` gets the first answer in place of a second execution.
#[must_use]
pub fn is_once(event: EventType) -> bool {
    match event {
        EventType::ConnectionRequest
        | EventType::ConnectionKeyPackages
        | EventType::GroupKeyPackages => true,
        EventType::DeliveryService(_)
        | EventType::Deliver
        | EventType::DeliverBatch
        | EventType::RecipientsGone
        | EventType::Complaint
        | EventType::MigrationRequest
        | EventType::MigrationContent
        | EventType::MigrationAbort
        | EventType::MigrationConfirmation => false,
    }
}

/// A request whose sender is proven.
#[derive(Debug, Clone, Copy)]
pub struct Request<'a> {
    pub sender: &'a Domain,
    pub event: EventType,
    pub id: RequestId,
    pub signed_at: Timestamp,
    /// SHA-256 of event and body: what the id was used for.
    pub hash: [u8; 32],
}

/// What is to be done with a request.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Judged {
    /// Harmless to execute. `is_repeat`: its id was seen.
    Free { is_repeat: bool },
    /// To be executed, and then [`Replays::finish`]ed or [`Replays::abandon`]ed.
    Execute { is_repeat: bool },
    /// It was executed: this is the answer.
    Answered(Arc<[u8]>),
}

/// The requests of the last ten minutes.
#[derive(Debug)]
pub struct Replays {
    limits: ReplayLimits,
    started_at: Timestamp,
    senders: HashMap<Domain, Sender>,
    ids: usize,
    answer_bytes: usize,
}

#[derive(Debug, Default)]
struct Sender {
    seen: HashMap<RequestId, Timestamp>,
    seen_order: VecDeque<(Timestamp, RequestId)>,
    once: HashMap<RequestId, Once>,
    once_order: VecDeque<(Timestamp, RequestId)>,
    answer_bytes: usize,
}

#[derive(Debug)]
struct Once {
    hash: [u8; 32],
    state: OnceState,
}

#[derive(Debug)]
enum OnceState {
    Executing,
    /// It came to nothing; the id is kept as seen.
    Failed,
    Answered(Arc<[u8]>),
}

impl Replays {
    #[must_use]
    pub fn new(limits: ReplayLimits, started_at: Timestamp) -> Self {
        Self { limits, started_at, senders: HashMap::new(), ids: 0, answer_bytes: 0 }
    }

    /// Takes note of a request that was verified.
    ///
    /// # Errors
    /// [`MessageError::BeforeStart`], [`MessageError::Executing`], [`MessageError::IdReused`], [`MessageError::Full`],
    /// all of what is once only.
    pub fn judge(&mut self, request: Request<'_>, now: Timestamp) -> Result<Judged, MessageError> {
        self.expire(request.sender, now);
        if is_once(request.event) {
            self.judge_once(request, now)
        } else {
            Ok(Judged::Free { is_repeat: self.note(request, now) })
        }
    }

    fn note(&mut self, request: Request<'_>, now: Timestamp) -> bool {
        let sender = self.senders.entry(request.sender.clone()).or_default();
        if sender.seen.contains_key(&request.id) {
            return true;
        }
        if sender.seen.len() >= self.limits.ids_per_sender_max.max(1) {
            self.ids -= sender.forget_ids(1);
        }
        sender.seen.insert(request.id, now);
        sender.seen_order.push_back((now, request.id));
        self.ids += 1;
        if self.ids > self.limits.ids_max {
            // a share at once, so that looking for the sender with most is rare
            let most = self.senders.values_mut().max_by_key(|sender| sender.seen.len());
            self.ids -= most.map_or(0, |sender| sender.forget_ids(sender.seen.len().div_ceil(8)));
        }
        false
    }

    fn judge_once(&mut self, request: Request<'_>, now: Timestamp) -> Result<Judged, MessageError> {
        let Request { id, signed_at, hash, .. } = request;
        let sender = self.senders.entry(request.sender.clone()).or_default();
        if let Some(once) = sender.once.get_mut(&id) {
            if once.hash != hash {
                return Err(MessageError::IdReused);
            }
            return match &once.state {
                OnceState::Executing => Err(MessageError::Executing),
                OnceState::Answered(answer) => Ok(Judged::Answered(Arc::clone(answer))),
                OnceState::Failed => {
                    once.state = OnceState::Executing;
                    Ok(Judged::Execute { is_repeat: true })
                }
            };
        }
        // by a clock that was ahead then and was set back
        self.started_at = self.started_at.min(now);
        if signed_at < self.started_at {
            return Err(MessageError::BeforeStart { now });
        }
        if sender.once.len() >= self.limits.answers_per_sender_max.max(1) {
            let freed = sender.forget_answer().ok_or(MessageError::Full)?;
            self.answer_bytes -= freed;
        }
        sender.once.insert(id, Once { hash, state: OnceState::Executing });
        sender.once_order.push_back((now, id));
        Ok(Judged::Execute { is_repeat: false })
    }

    /// Keeps the answer of an execution. One that is larger than all that its sender may have is not kept: a repeat is
    /// executed again.
    pub fn finish(&mut self, sender: &Domain, id: RequestId, answer: &[u8]) {
        let Some(known) = self.senders.get_mut(sender) else { return };
        let Some(once) = known.once.get_mut(&id) else { return };
        if !matches!(once.state, OnceState::Executing) {
            return;
        }
        if answer.len() > self.limits.answer_bytes_per_sender_max {
            once.state = OnceState::Failed;
            return;
        }
        once.state = OnceState::Answered(answer.into());
        known.answer_bytes += answer.len();
        self.answer_bytes += answer.len();
        while known.answer_bytes > self.limits.answer_bytes_per_sender_max {
            let Some(freed) = known.forget_answer() else { break };
            self.answer_bytes -= freed;
        }
        while self.answer_bytes > self.limits.answer_bytes_max {
            let most = self.senders.values_mut().max_by_key(|sender| sender.answer_bytes);
            let Some(freed) = most.and_then(Sender::forget_answer) else { break };
            self.answer_bytes -= freed;
        }
    }

    /// The execution came to nothing: a repeat is executed.
    pub fn abandon(&mut self, sender: &Domain, id: RequestId) {
        let once = self.senders.get_mut(sender).and_then(|known| known.once.get_mut(&id));
        if let Some(once) = once
            && matches!(once.state, OnceState::Executing)
        {
            once.state = OnceState::Failed;
        }
    }

    /// Ids and bytes of answers that are held.
    #[must_use]
    pub fn held(&self) -> (usize, usize) {
        (self.ids, self.answer_bytes)
    }

    /// Forgets what is over of every sender: to be called now and then, for those that went quiet.
    pub fn expire_all(&mut self, now: Timestamp) {
        let senders: Vec<Domain> = self.senders.keys().cloned().collect();
        for sender in senders {
            self.expire(&sender, now);
        }
    }

    fn expire(&mut self, sender: &Domain, now: Timestamp) {
        let Some(known) = self.senders.get_mut(sender) else { return };
        let is_over = |at: Timestamp| now.ms_since(at) > REMEMBERED_MS;
        let over = known.seen_order.iter().take_while(|(at, _)| is_over(*at)).count();
        self.ids -= known.forget_ids(over);
        while let Some((at, id)) = known.once_order.front().copied() {
            let is_executing =
                known.once.get(&id).is_some_and(|once| matches!(once.state, OnceState::Executing));
            if !is_over(at) || is_executing {
                break;
            }
            known.once_order.pop_front();
            self.answer_bytes -= known.drop_once(id);
        }
        if known.seen.is_empty() && known.once.is_empty() {
            self.senders.remove(sender);
        }
    }
}

impl Sender {
    fn forget_ids(&mut self, count: usize) -> usize {
        let count = count.min(self.seen_order.len());
        for (_, id) in self.seen_order.drain(..count) {
            self.seen.remove(&id);
        }
        count
    }

    /// Forgets the oldest that is not being executed, and gives its bytes; none where all are.
    fn forget_answer(&mut self) -> Option<usize> {
        let at = self.once_order.iter().position(|(_, id)| {
            self.once.get(id).is_none_or(|once| !matches!(once.state, OnceState::Executing))
        })?;
        let (_, id) = self.once_order.remove(at)?;
        Some(self.drop_once(id))
    }

    /// The bytes that are free then.
    fn drop_once(&mut self, id: RequestId) -> usize {
        let freed = match self.once.remove(&id).map(|once| once.state) {
            Some(OnceState::Answered(answer)) => answer.len(),
            Some(OnceState::Executing | OnceState::Failed) | None => 0,
        };
        self.answer_bytes -= freed;
        freed
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: Timestamp = Timestamp(1_700_000_000_000);

    fn domain(name: &str) -> Domain {
        Domain::new(name).unwrap()
    }

    fn id(n: u64) -> RequestId {
        let mut bytes = [0; 16];
        bytes[..8].copy_from_slice(&n.to_be_bytes());
        RequestId(bytes)
    }

    fn request(sender: &Domain, event: EventType, n: u64, at: Timestamp) -> Request<'_> {
        Request { sender, event, id: id(n), signed_at: at, hash: [1; 32] }
    }

    fn limits() -> ReplayLimits {
        ReplayLimits {
            ids_per_sender_max: 8,
            ids_max: 12,
            answers_per_sender_max: 3,
            answer_bytes_per_sender_max: 100,
            answer_bytes_max: 150,
        }
    }

    const FREE: EventType = EventType::DeliverBatch;
    const ONCE: EventType = EventType::GroupKeyPackages;

    #[test]
    fn a_repeat_is_noticed_for_ten_minutes_and_per_sender() {
        let (a, b) = (domain("a.example"), domain("b.example"));
        let mut replays = Replays::new(ReplayLimits::default(), START);
        let mut is_repeat = |sender: &Domain, now| {
            replays.judge(request(sender, FREE, 1, now), now).unwrap()
                == Judged::Free { is_repeat: true }
        };
        assert!(!is_repeat(&a, START));
        assert!(is_repeat(&a, START.plus_ms(REMEMBERED_MS)));
        assert!(!is_repeat(&b, START), "another sender's id is another");
        assert!(!is_repeat(&a, START.plus_ms(REMEMBERED_MS + 1)));
        replays.expire_all(START.plus_ms(10 * REMEMBERED_MS));
        assert_eq!(replays.held(), (0, 0));
        assert!(replays.senders.is_empty());
    }

    #[test]
    fn ids_are_bounded_and_a_noisy_sender_forgets_its_own() {
        let (noisy, quiet) = (domain("noisy.example"), domain("quiet.example"));
        let mut replays = Replays::new(limits(), START);
        for n in 0..4 {
            replays.judge(request(&quiet, FREE, n, START), START).unwrap();
        }
        for n in 0..1000 {
            replays.judge(request(&noisy, FREE, n, START), START).unwrap();
            assert!(replays.held().0 <= 12);
        }
        for n in 0..4 {
            let judged = replays.judge(request(&quiet, FREE, n, START), START).unwrap();
            assert_eq!(judged, Judged::Free { is_repeat: true }, "{n}");
        }
        let newest = replays.judge(request(&noisy, FREE, 999, START), START).unwrap();
        assert_eq!(newest, Judged::Free { is_repeat: true });
    }

    #[test]
    fn what_is_once_only_is_executed_once_and_answered_again() {
        let a = domain("a.example");
        let mut replays = Replays::new(limits(), START);
        let one = request(&a, ONCE, 1, START);
        assert_eq!(replays.judge(one, START), Ok(Judged::Execute { is_repeat: false }));
        assert_eq!(replays.judge(one, START), Err(MessageError::Executing));
        replays.finish(&a, id(1), b"answer");
        assert_eq!(replays.judge(one, START), Ok(Judged::Answered(b"answer"[..].into())));
        let other = Request { hash: [2; 32], ..one };
        assert_eq!(replays.judge(other, START), Err(MessageError::IdReused));
        let b = domain("b.example");
        let judged = replays.judge(request(&b, ONCE, 1, START), START);
        assert_eq!(judged, Ok(Judged::Execute { is_repeat: false }), "an answer is its sender's");
    }

    #[test]
    fn a_failed_execution_is_no_answer() {
        let a = domain("a.example");
        let mut replays = Replays::new(limits(), START);
        let one = request(&a, ONCE, 1, START);
        replays.judge(one, START).unwrap();
        replays.abandon(&a, id(1));
        assert_eq!(replays.judge(one, START), Ok(Judged::Execute { is_repeat: true }));
        replays.finish(&a, id(1), b"now");
        replays.abandon(&a, id(1));
        let judged = replays.judge(one, START);
        assert_eq!(judged, Ok(Judged::Answered(b"now"[..].into())), "an answer stays");
    }

    #[test]
    fn answers_are_bounded_by_count_and_by_bytes() {
        let (a, b) = (domain("a.example"), domain("b.example"));
        let mut replays = Replays::new(limits(), START);
        let run = |replays: &mut Replays, sender: &Domain, n, bytes: usize| {
            let judged = replays.judge(request(sender, ONCE, n, START), START);
            replays.finish(sender, id(n), &vec![0; bytes]);
            judged
        };
        let is_kept = |replays: &Replays, sender: &Domain, n| {
            let once = replays.senders[sender].once.get(&id(n));
            once.is_some_and(|once| matches!(once.state, OnceState::Answered(_)))
        };
        for n in 0..4 {
            run(&mut replays, &a, n, 10).unwrap();
        }
        assert!(!is_kept(&replays, &a, 0), "the oldest of more than three");
        assert_eq!(replays.held().1, 30);
        run(&mut replays, &a, 4, 90).unwrap();
        assert_eq!(replays.held().1, 100);
        run(&mut replays, &a, 5, 101).unwrap();
        assert!(!is_kept(&replays, &a, 5), "larger than all that a sender may have");
        run(&mut replays, &b, 1, 80).unwrap();
        let (_, bytes) = replays.held();
        assert!(bytes <= 150, "{bytes}");
        assert!(is_kept(&replays, &b, 1), "the sender that holds most pays");
        replays.expire_all(START.plus_ms(REMEMBERED_MS + 1));
        assert_eq!(replays.held(), (0, 0));
    }

    #[test]
    fn executions_beyond_the_bound_are_refused_and_not_forgotten() {
        let a = domain("a.example");
        let mut replays = Replays::new(limits(), START);
        for n in 0..3 {
            replays.judge(request(&a, ONCE, n, START), START).unwrap();
        }
        assert_eq!(replays.judge(request(&a, ONCE, 3, START), START), Err(MessageError::Full));
        let late = START.plus_ms(REMEMBERED_MS + 1);
        assert_eq!(replays.judge(request(&a, ONCE, 0, late), late), Err(MessageError::Executing));
        replays.abandon(&a, id(1));
        assert!(replays.judge(request(&a, ONCE, 3, START), START).is_ok());
    }

    #[test]
    fn what_was_signed_before_the_start_is_executed_only_where_that_is_harmless() {
        let a = domain("a.example");
        let mut replays = Replays::new(limits(), START);
        let before = Timestamp(START.0 - 1);
        assert_eq!(
            replays.judge(request(&a, ONCE, 1, before), START),
            Err(MessageError::BeforeStart { now: START })
        );
        let free = replays.judge(request(&a, FREE, 1, before), START);
        assert_eq!(free, Ok(Judged::Free { is_repeat: false }));
        let anew = replays.judge(request(&a, ONCE, 1, START), START);
        assert_eq!(anew, Ok(Judged::Execute { is_repeat: false }));
    }

    #[test]
    fn a_process_that_began_with_its_clock_ahead_refuses_nobody_once_that_is_right() {
        let a = domain("a.example");
        let mut replays = Replays::new(limits(), START.plus_ms(86_400_000));
        let first = replays.judge(request(&a, ONCE, 1, Timestamp(START.0 - 1)), START);
        assert_eq!(first, Err(MessageError::BeforeStart { now: START }), "once, to be signed anew");
        let later = START.plus_ms(1);
        let anew = replays.judge(request(&a, ONCE, 1, START), later);
        assert_eq!(anew, Ok(Judged::Execute { is_repeat: false }));
    }
}
