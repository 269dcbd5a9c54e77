//! Commands about tenants that move to another group: what group 0 decides, and what the two groups are told.
//!
//! `state/system/moves.rs` has the protocol.

use serde::{Deserialize, Serialize};

use crate::domain::ids::{Epoch, TenantId};

/// A row to write (`Some`) or delete (`None`), by key.
pub type MovedRow = (Vec<u8>, Option<Vec<u8>>);

/// Takes the next step of a tenant's move. Counts only for the attempt of that epoch.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct StepMove {
    /// The tenant that moves.
    pub tenant: TenantId,
    /// The epoch that the attempt would give the tenant.
    pub epoch: Epoch,
    /// The step.
    pub step: MoveStep,
}

/// The steps of a move, as group 0 decides about them.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum MoveStep {
    /// Begins another attempt, in the next epoch. What is left of this attempt counts for nothing.
    Retry,
    /// Gives the tenant to the target group, which holds all of it.
    Commit,
    /// Gives the move up: the tenant stays where it is.
    Abort,
    /// Ends the move: nothing is left of the tenant where it is not.
    Finish,
}

/// What a tenant's group is told while the tenant moves. The epoch is the command's own: that of the attempt.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub enum MoveTenant {
    /// To the source: nothing changes any more.
    Freeze,
    /// To the source: attempts of earlier epochs are over, the tenant goes on.
    Thaw,
    /// To the target: a piece of what the source holds.
    TakeIn(MovedPiece),
    /// To the source: the tenant lives elsewhere, its data goes.
    Leave,
    /// To the target: the tenant does not come, its data goes.
    Discard,
}

/// A piece of what a tenant's group holds, on its way to another group.
#[derive(Clone, PartialEq, Serialize, Deserialize)]
pub struct MovedPiece {
    /// Its place among the pieces of the attempt, from 0.
    pub number: u32,
    /// Rows to be written or deleted, in this order.
    pub rows: Vec<MovedRow>,
    /// The beginning of the value of the next piece's first row, which is too large for one piece.
    pub begun: Vec<u8>,
    /// Whole events, which go on where those of the piece before end.
    pub events: Vec<u8>,
    /// Whether nothing is missing after it: the source was frozen when it was read.
    pub is_last: bool,
}
