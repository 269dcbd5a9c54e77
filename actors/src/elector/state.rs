//! What the elector has announced. Pure.

use crate::ports::Leadership;

/// The elector's state.
#[derive(Debug, Default)]
pub(super) struct Announcements {
    announced: Option<u64>,
}

impl Announcements {
    /// The term that is to be announced now, once each.
    pub(super) fn changed(&mut self, now: Leadership) -> Option<u64> {
        let is_new = now.here && self.announced.is_none_or(|announced| announced < now.term);
        is_new.then(|| {
            self.announced = Some(now.term);
            now.term
        })
    }

    /// Whether an announcement that failed is still worth another attempt.
    pub(super) fn is_current(&self, term: u64, now: Leadership) -> bool {
        now.here && now.term == term && self.announced == Some(term)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_term_led_here_is_announced_once() {
        let leads = |term, here| Leadership { term, leader: Some(1), here };
        let mut state = Announcements::default();
        assert_eq!(state.changed(leads(1, false)), None);
        assert_eq!(state.changed(leads(2, true)), Some(2));
        assert_eq!(state.changed(leads(2, true)), None);
        assert!(state.is_current(2, leads(2, true)));
        assert!(!state.is_current(2, leads(3, true)));
        assert_eq!(state.changed(leads(3, true)), Some(3));
    }
}
