//! Locks: the cluster's, and each tenant's own.

use std::time::Duration;

use crate::error::CallError;
use crate::handles::{Call, TenantHandle};
use crate::json::Json;
use crate::outcome::LockView;
use crate::views::{Acquired, LockDetail, Page, PageRequest};

/// Handle to the locks.
#[derive(Debug, Clone)]
pub struct Locks {}

/// A key space: keys and fencing tokens of different spaces have nothing to do with each other.
#[derive(Debug, Clone, Copy)]
pub enum LockSpace<'a> {
    /// The cluster's.
    Cluster,
    /// A tenant's own.
    Tenant(&'a TenantHandle),
}

/// An attempt to take a lock.
#[derive(Debug, Clone)]
pub struct AcquireLock {
    /// Key, 1-512 bytes.
    pub key: String,
    /// Who wants it, 1-256 bytes.
    pub holder: String,
    /// Length of a term.
    pub ttl: Duration,
    /// How long to queue for it.
    pub wait: Duration,
    /// Free JSON shown with the lock.
    pub metadata: Json,
}

impl Locks {
    /// Takes the lock, or queues for it.
    pub async fn acquire(
        &self,
        _: &Call,
        _: LockSpace<'_>,
        _: AcquireLock,
    ) -> Result<Acquired, CallError> {
        todo!()
    }
    /// Begins the holder's term again.
    pub async fn renew(
        &self,
        _: &Call,
        _: LockSpace<'_>,
        _key: String,
        _holder: String,
        _token: Option<u64>,
        _ttl: Option<Duration>,
    ) -> Result<LockView, CallError> {
        todo!()
    }
    /// Gives the lock back; whether it was held so.
    pub async fn release(
        &self,
        _: &Call,
        _: LockSpace<'_>,
        _key: String,
        _holder: String,
        _token: Option<u64>,
    ) -> Result<bool, CallError> {
        todo!()
    }
    /// One lock.
    pub async fn get(
        &self,
        _: &Call,
        _: LockSpace<'_>,
        _key: String,
    ) -> Result<LockDetail, CallError> {
        todo!()
    }
    /// The held locks whose keys begin with `prefix`, by key.
    pub async fn list(
        &self,
        _: &Call,
        _: LockSpace<'_>,
        _prefix: String,
        _: PageRequest,
    ) -> Result<Page<LockDetail>, CallError> {
        todo!()
    }
}
