//! Tenants at run time: one supervised actor each.
//!
//! Invariants:
//! - a tenant's files are open in one actor at a time; whoever needs a tenant that sleeps wakes it;
//! - what waits for one tenant is bounded by permits: when they are out, its callers get 'busy' and
//!   its neighbours notice nothing;
//! - an actor that fails is started again from its files and the log; one that keeps failing is
//!   quarantined with the reason, and tried again now and then; one whose files are damaged is out of
//!   service at once, and until the node is started again;
//! - effects are performed only by the leader of the tenant's group, after everything of earlier
//!   terms has been applied.

mod activation;
mod actor;
mod fair_semaphore;
mod message;
mod rate;
mod registry;
mod rendering;
mod steps;
mod supervisor;
mod timers;
mod waits;

pub use activation::{Activation, ActivationState, TENANT_CALLS_MAX};
pub use actor::TenantDeps;
pub use message::{AdmitReply, TenantMessage, TenantReader, TestHook};
pub use registry::{Quarantined, Registry};
pub use rendering::Renderer;
pub use steps::StepLimits;
pub use supervisor::{SupervisorArguments, SupervisorMessage, TenantSupervisor};
