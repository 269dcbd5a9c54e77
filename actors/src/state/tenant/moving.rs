//! How a tenant's state machine leaves a group and comes into another. `state/system/moves.rs` has the protocol.
//!
//! | state | is | left by |
//! |---|---|---|
//! | `Here` | the tenant lives here, or nowhere yet | `Freeze`: `Frozen`; the first piece, where there is no tenant: `Arriving` |
//! | `Frozen` | it stands still, and is read for its move | `Thaw`: `Here`; `Leave`: `Gone`; its deletion; a forced recovery: `Here` |
//! | `Arriving` | rows and events of it are taken in, and nothing is done with them | the `Set` of its epoch, once it is whole: `Here`; `Discard`: `Gone` |
//! | `Gone` | it lives elsewhere; a mark in memory only, as the files go | the first piece of a later attempt: `Arriving` |
//!
//! Invariants:
//! - what is not `Here` refuses every command but those of the move, a deletion and what is told of an old version:
//!   whoever asks looks again where the tenant is;
//! - a piece is taken in once, in its place, of one attempt; the first piece of a later attempt begins anew;
//! - commands of a move do not touch the clock: the rows that come bring the tenant's own;
//! - what `Leave` and `Discard` come to is the same whatever was here, as after a crash in which the files went first.

use serde::{Deserialize, Serialize};

use super::{Meta, TenantEffect, TenantState};
use crate::command::{
    Command, Envelope, MoveTenant, MovedPiece, Outcome, SetTenant, TenantCommand,
};
use crate::domain::ids::Epoch;
use crate::mutants::{self, Mutant};

/// Whether the tenant lives in this group.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) enum Presence {
    /// It does, or it lives nowhere yet.
    Here {
        /// Attempts to move it of earlier epochs are over.
        fence: Epoch,
    },
    /// It stands still until it is known whether it has moved.
    Frozen {
        /// The epoch of the attempt.
        to: Epoch,
    },
    /// It is being copied here.
    Arriving(Arriving),
    /// It lives elsewhere.
    Gone,
}

/// How much of a tenant has come.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Arriving {
    epoch: Epoch,
    /// The number of the next piece.
    next: u32,
    /// The beginning of the value of its first row.
    begun: Vec<u8>,
    is_whole: bool,
}

impl Default for Presence {
    fn default() -> Self {
        Self::Here { fence: Epoch(0) }
    }
}

impl TenantState {
    /// Tells whether the tenant lives elsewhere, or is about to: whoever asks for it looks again where it is.
    pub fn is_elsewhere(&self) -> bool {
        match self.presence {
            Presence::Here { .. } => false,
            Presence::Frozen { .. } => !mutants::is(Mutant::TwoOwners),
            Presence::Arriving(_) | Presence::Gone => true,
        }
    }

    /// Tells whether the tenant is being copied here.
    pub(super) const fn is_arriving(&self) -> bool {
        matches!(self.presence, Presence::Arriving(_))
    }

    /// Tells whether group 0 may set the tenant to a newer version now.
    pub(super) fn may_be_set(&self, epoch: Epoch, set: &SetTenant) -> bool {
        match &self.presence {
            Presence::Here { .. } => true,
            // What changed it now the copy would not have. A later epoch than the tenant's own is that of a forced
            // recovery, whose control plane may not know of the attempt at all: a move that was committed is told to
            // the target.
            Presence::Frozen { .. } => set.record.is_none() || epoch > self.meta.epoch,
            Presence::Arriving(it) => it.epoch <= epoch && (it.is_whole || set.record.is_none()),
            Presence::Gone => set.record.is_none(),
        }
    }

    /// Tells whether a command wakes the tenant that has been taken in here: then all of it is loaded first.
    pub(super) fn is_woken_by(&self, envelope: &Envelope) -> bool {
        let Presence::Arriving(it) = &self.presence else { return false };
        let Command::Tenant { epoch, command, .. } = &envelope.command else { return false };
        let TenantCommand::Set(set) = command else { return false };
        it.is_whole && it.epoch <= *epoch && set.record.is_some()
    }

    /// Takes the place that it was copied for. `index` is that of the command that wakes it.
    pub(super) fn arrive(&mut self, index: u64) {
        let Presence::Arriving(it) = &self.presence else { return };
        // Nothing was lost on the way: tokens go on where they were, and need not be raised for the epoch.
        self.meta.epoch = it.epoch;
        self.presence = Presence::Here { fence: it.epoch };
        self.completions.continue_at(index);
        self.has_arrived = true;
        (self.dirty.meta, self.dirty.presence) = (true, true);
    }

    pub(super) fn step_of_move(
        &mut self,
        epoch: Epoch,
        command: &MoveTenant,
    ) -> (Outcome, Vec<TenantEffect>) {
        match command {
            MoveTenant::Freeze => self.freeze(epoch),
            MoveTenant::Thaw => self.thaw(epoch),
            MoveTenant::TakeIn(piece) => (self.take_in(epoch, piece), Vec::new()),
            MoveTenant::Leave | MoveTenant::Discard => self.let_go(epoch, command),
        }
    }

    fn freeze(&mut self, epoch: Epoch) -> (Outcome, Vec<TenantEffect>) {
        let is_due = match &self.presence {
            Presence::Here { fence } => epoch >= *fence,
            Presence::Frozen { to } => epoch >= *to,
            Presence::Arriving(_) | Presence::Gone => false,
        };
        if !is_due || self.meta.record.is_none() || epoch <= self.meta.epoch {
            return (Outcome::Ignored, Vec::new());
        }
        self.presence = Presence::Frozen { to: epoch };
        self.dirty.presence = true;
        (Outcome::Done, vec![TenantEffect::Frozen])
    }

    fn thaw(&mut self, epoch: Epoch) -> (Outcome, Vec<TenantEffect>) {
        let effects = match &self.presence {
            Presence::Here { fence } if *fence < epoch => Vec::new(),
            Presence::Frozen { to } if *to < epoch => vec![TenantEffect::Resumed],
            _ => return (Outcome::Done, Vec::new()),
        };
        if self.meta.record.is_some() {
            self.presence = Presence::Here { fence: epoch };
            self.dirty.presence = true;
        }
        (Outcome::Done, effects)
    }

    fn take_in(&mut self, epoch: Epoch, piece: &MovedPiece) -> Outcome {
        let is_known = matches!(&self.presence, Presence::Arriving(it) if it.epoch >= epoch);
        if !is_known {
            if self.meta.record.is_some() || epoch <= self.meta.epoch || piece.number != 0 {
                return Outcome::Ignored;
            }
            // What an earlier attempt, or an earlier life in this group, has left is no part of it.
            let begun = Arriving { epoch, next: 0, begun: Vec::new(), is_whole: false };
            let presence = Presence::Arriving(begun);
            *self = Self { presence, has_reset: true, ..Self::default() };
        }
        let Presence::Arriving(it) = &mut self.presence else { return Outcome::Ignored };
        if it.epoch != epoch || piece.number > it.next || it.is_whole && piece.number >= it.next {
            return Outcome::Ignored;
        }
        if piece.number < it.next {
            return Outcome::Done;
        }
        for (key, value) in &piece.rows {
            let value = value.as_ref().map(|value| {
                let mut whole = std::mem::take(&mut it.begun);
                whole.extend_from_slice(value);
                whole
            });
            self.settled.push((key.clone(), value));
        }
        // A row that is larger than two pieces has its beginning in several.
        it.begun.extend_from_slice(&piece.begun);
        self.events.extend_from_slice(&piece.events);
        it.next += 1;
        it.is_whole = piece.is_last;
        self.dirty.presence = true;
        Outcome::Done
    }

    /// Lets go of what is here of an earlier epoch, or of an attempt that did not come to its end.
    fn let_go(&mut self, epoch: Epoch, command: &MoveTenant) -> (Outcome, Vec<TenantEffect>) {
        let is_later = match &self.presence {
            Presence::Arriving(it) if *command == MoveTenant::Discard => it.epoch > epoch,
            Presence::Arriving(it) => it.epoch >= epoch,
            // Told to discard a copy, while it is the tenant itself.
            _ if *command == MoveTenant::Discard => self.meta.record.is_some(),
            _ => false,
        };
        if is_later || self.meta.epoch > epoch || self.epoch_here() == Some(epoch) {
            return (Outcome::Done, Vec::new());
        }
        let meta = Meta { epoch, ..Meta::default() };
        *self = Self { meta, presence: Presence::Gone, has_reset: true, ..Self::default() };
        (Outcome::Done, vec![TenantEffect::Gone])
    }

    fn epoch_here(&self) -> Option<Epoch> {
        self.meta.record.as_ref().map(|_| self.meta.epoch)
    }
}
