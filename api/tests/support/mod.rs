//! What the tests of the API share: the API of a node whose actors do not run.

use std::time::Duration;

use shiioo_actors::domain::secret::SecretHash;
use shiioo_actors::domain::time::Timestamp;
use shiioo_actors::ports::descriptors::DescriptorBudget;
use shiioo_actors::testing::fixed_seams;
use shiioo_api::{Api, ApiConfig};

/// 1994-11-06T08:49:37Z.
const NOW: Timestamp = Timestamp(784_111_777_000);

/// An API, with or without an admin token.
pub fn api(admin_token: Option<&str>) -> Api {
    bounded_api(admin_token, DescriptorBudget::default())
}

/// An API with bounds of its own.
pub fn bounded_api(admin_token: Option<&str>, descriptors: DescriptorBudget) -> Api {
    Api::new(
        fixed_seams(NOW),
        ApiConfig {
            version: "1.2.3",
            request_timeout: Duration::from_secs(5),
            heartbeat_interval: Duration::from_secs(10),
            admin_token: tokio::sync::watch::channel(
                admin_token.map(|token| SecretHash::of_admin_token(token.as_bytes())),
            )
            .1,
            api_hosts: Vec::new(),
            default_tenant: None,
            test_hooks: false,
            descriptors,
            extra_metrics: vec![Box::new(|out| out.push_str("shiioo_up 1\n"))],
        },
    )
}
