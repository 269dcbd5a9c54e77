//! Tables that both state machines have, each with the rows that it is written to.
//!
//! Two of them answer one question, 'was this done already?', for two who ask:
//!
//! | | `completion_records` | `idempotency` |
//! |---|---|---|
//! | who may ask twice | a node, for one request of a client | a client, with a request of its own |
//! | the name | RPC id: incarnation, sequence | hash of scope and `Idempotency-Key` |
//! | for which calls | writes of clients, all but taking and renewing locks | calls that create |
//! | what is kept | the outcome, if it changed something | what was made, and a hash of the body |
//! | until | the node has answered its client | 25 hours have passed: the 24 promised, and one for a wrong clock |
//!
//! A call may have both names. The RPC id is looked up first, before the command is looked at
//! (`state/machine.rs`); the key is looked up by the command itself, before its other refusals.

pub(crate) mod completion_records;
pub mod idempotency;
pub mod lock_table;
