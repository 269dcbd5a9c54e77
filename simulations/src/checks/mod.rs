//! What must hold of a run. Each file states its promise and compares plain facts with it; promises
//! that the black-box tests check as well are in `outside::checks`.

pub mod durability;
pub mod event_pages;
pub mod leaders;
pub mod linear;
pub mod liveness;
pub mod lock_spec;
pub mod lost_data;
pub mod matching;
pub mod memory;
pub mod object_spec;
pub mod out_of_service;
pub mod quotas;
pub mod reads;
pub mod replicas;
pub mod terms;

pub use outside::checks::{Checked, Violation};
pub use replicas::Logs;
