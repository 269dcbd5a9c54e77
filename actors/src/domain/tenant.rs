//! A tenant as group 0 knows it: name, status, quotas, settings.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::domain::json::Json;
use crate::domain::region::Region;
use crate::domain::time::Timestamp;

/// Whether a tenant may work.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum TenantStatus {
    /// Everything is allowed.
    Active,
    /// Reads work; only what winds work down may be written.
    Suspended,
    /// As suspended.
    Disabled,
}

impl TenantStatus {
    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Active => "Active",
            Self::Suspended => "Suspended",
            Self::Disabled => "Disabled",
        }
    }
}

/// The five quotas.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub enum Quota {
    /// Runs that have not ended.
    ConcurrentWorkflows,
    /// Runs accepted since 00:00 UTC.
    WorkflowsPerDay,
    /// Routines defined.
    Routines,
    /// Bytes of events, inputs, outputs, definitions, jobs and metadata of locks.
    StorageBytes,
    /// Requests admitted in any 60 s.
    ApiRequestsPerMinute,
}

impl Quota {
    /// All of them, in the API's order.
    pub const ALL: [Self; 5] = [
        Self::ConcurrentWorkflows,
        Self::WorkflowsPerDay,
        Self::Routines,
        Self::StorageBytes,
        Self::ApiRequestsPerMinute,
    ];

    /// The name in the API.
    pub const fn name(self) -> &'static str {
        match self {
            Self::ConcurrentWorkflows => "max_concurrent_workflows",
            Self::WorkflowsPerDay => "max_workflows_per_day",
            Self::Routines => "max_routines",
            Self::StorageBytes => "max_storage_bytes",
            Self::ApiRequestsPerMinute => "max_api_requests_per_minute",
        }
    }
}

impl fmt::Display for Quota {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// The limits of a tenant. `None` is unlimited, 0 is none.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Quotas {
    /// Runs that have not ended.
    pub max_concurrent_workflows: Option<u64>,
    /// Runs accepted a day of UTC.
    pub max_workflows_per_day: Option<u64>,
    /// Routines defined.
    pub max_routines: Option<u64>,
    /// Bytes of events, inputs, outputs, definitions, jobs and metadata of locks.
    pub max_storage_bytes: Option<u64>,
    /// Requests in any 60 s.
    pub max_api_requests_per_minute: Option<u64>,
}

impl Default for Quotas {
    fn default() -> Self {
        Self {
            max_concurrent_workflows: Some(10),
            max_workflows_per_day: Some(1000),
            max_routines: Some(50),
            max_storage_bytes: Some(10_000_000_000),
            max_api_requests_per_minute: Some(1000),
        }
    }
}

impl Quotas {
    /// The limit of one quota.
    pub const fn limit(&self, quota: Quota) -> Option<u64> {
        match quota {
            Quota::ConcurrentWorkflows => self.max_concurrent_workflows,
            Quota::WorkflowsPerDay => self.max_workflows_per_day,
            Quota::Routines => self.max_routines,
            Quota::StorageBytes => self.max_storage_bytes,
            Quota::ApiRequestsPerMinute => self.max_api_requests_per_minute,
        }
    }

    /// The limit of one quota, to be changed.
    pub const fn limit_mut(&mut self, quota: Quota) -> &mut Option<u64> {
        match quota {
            Quota::ConcurrentWorkflows => &mut self.max_concurrent_workflows,
            Quota::WorkflowsPerDay => &mut self.max_workflows_per_day,
            Quota::Routines => &mut self.max_routines,
            Quota::StorageBytes => &mut self.max_storage_bytes,
            Quota::ApiRequestsPerMinute => &mut self.max_api_requests_per_minute,
        }
    }
}

/// What a tenant chose.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Settings {
    /// Days that ended runs and their events are kept.
    pub data_retention_days: u32,
    /// Whether changes write an `audit` event.
    pub enable_audit_logging: bool,
    /// A JSON object of the owner's.
    pub metadata: Json,
}

impl Default for Settings {
    fn default() -> Self {
        Self {
            data_retention_days: 90,
            enable_audit_logging: true,
            metadata: Json::from_text("{}".to_owned()),
        }
    }
}

/// A tenant's state in group 0, and the copy its group works by.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TenantRecord {
    /// For people; need not be unique.
    pub name: String,
    /// For people.
    pub description: String,
    /// Whether it may work.
    pub status: TenantStatus,
    /// Its limits.
    pub quotas: Quotas,
    /// Its choices.
    pub settings: Settings,
    /// Where its replicas live.
    pub region: Region,
    /// When group 0 created it.
    pub created_at: Timestamp,
    /// When it last changed.
    pub updated_at: Timestamp,
}

/// A partial change to a tenant: what is `None` stays.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct TenantChange {
    /// New name.
    pub name: Option<String>,
    /// New description.
    pub description: Option<String>,
    /// New status.
    pub status: Option<TenantStatus>,
    /// New limits, each with its new value (`None` is unlimited).
    pub quotas: Vec<(Quota, Option<u64>)>,
    /// New retention.
    pub data_retention_days: Option<u32>,
    /// New audit choice.
    pub enable_audit_logging: Option<bool>,
    /// New metadata, as a whole.
    pub metadata: Option<Json>,
    /// New region: the tenant moves there. The present one calls a move off.
    pub region: Option<Region>,
}

impl TenantChange {
    /// Changes `record`; whether anything is different now.
    pub fn apply(&self, record: &mut TenantRecord) -> bool {
        let before = record.clone();
        let settings = &mut record.settings;
        set(&mut record.name, self.name.as_ref());
        set(&mut record.description, self.description.as_ref());
        set(&mut record.status, self.status.as_ref());
        set(&mut settings.data_retention_days, self.data_retention_days.as_ref());
        set(&mut settings.enable_audit_logging, self.enable_audit_logging.as_ref());
        set(&mut settings.metadata, self.metadata.as_ref());
        for (quota, limit) in &self.quotas {
            *record.quotas.limit_mut(*quota) = *limit;
        }
        *record != before
    }
}

fn set<T: Clone>(target: &mut T, value: Option<&T>) {
    if let Some(value) = value {
        target.clone_from(value);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record() -> TenantRecord {
        TenantRecord {
            name: "acme".into(),
            description: "old".into(),
            status: TenantStatus::Active,
            quotas: Quotas::default(),
            settings: Settings {
                data_retention_days: 90,
                enable_audit_logging: true,
                metadata: Json::null(),
            },
            region: "default".into(),
            created_at: Timestamp(1),
            updated_at: Timestamp(1),
        }
    }

    #[test]
    fn each_quota_has_its_own_limit() {
        let mut quotas = Quotas::default();
        let limits = [Some(10), Some(1000), Some(50), Some(10_000_000_000), Some(1000)];
        assert_eq!(Quota::ALL.map(|quota| quotas.limit(quota)), limits);
        for (quota, limit) in Quota::ALL.into_iter().zip([None, Some(1), Some(2), Some(3), None]) {
            *quotas.limit_mut(quota) = limit;
        }
        let expected = [None, Some(1), Some(2), Some(3), None];
        assert_eq!(Quota::ALL.map(|quota| quotas.limit(quota)), expected);
    }

    #[test]
    fn a_change_says_whether_it_changed_anything() {
        type Expect = fn(&mut TenantRecord);
        let table: [(TenantChange, Expect); 7] = [
            (TenantChange { name: Some("b".into()), ..TenantChange::default() }, |record| {
                record.name = "b".into();
            }),
            (TenantChange { description: Some("b".into()), ..TenantChange::default() }, |record| {
                record.description = "b".into();
            }),
            (
                TenantChange { status: Some(TenantStatus::Disabled), ..TenantChange::default() },
                |record| record.status = TenantStatus::Disabled,
            ),
            (
                TenantChange { quotas: vec![(Quota::Routines, None)], ..TenantChange::default() },
                |record| record.quotas.max_routines = None,
            ),
            (TenantChange { data_retention_days: Some(1), ..TenantChange::default() }, |record| {
                record.settings.data_retention_days = 1;
            }),
            (
                TenantChange { enable_audit_logging: Some(false), ..TenantChange::default() },
                |record| record.settings.enable_audit_logging = false,
            ),
            (
                TenantChange {
                    metadata: Some(Json::from_value(&1.into())),
                    ..TenantChange::default()
                },
                |record| record.settings.metadata = Json::from_value(&1.into()),
            ),
        ];
        for (change, expect) in table {
            let (mut changed, mut expected) = (record(), record());
            expect(&mut expected);
            assert!(change.apply(&mut changed), "{change:?}");
            assert_eq!(changed, expected);
            assert!(!change.apply(&mut changed), "the second time: {change:?}");
        }
        assert!(!TenantChange::default().apply(&mut record()));
    }

    #[test]
    fn statuses_have_the_names_of_the_api() {
        use TenantStatus::{Active, Disabled, Suspended};
        let names = [Active, Suspended, Disabled].map(TenantStatus::name);
        assert_eq!(names, ["Active", "Suspended", "Disabled"]);
    }
}
