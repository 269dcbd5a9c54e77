//! Regions: where nodes are, and where replicas live.

use crate::domain::text::checked_text;

/// Longest name of a region, bytes.
const REGION_BYTES_MAX: usize = 63;
/// Names that the data directory uses itself: a region has a folder of its name there.
const REGIONS_TAKEN: [&str; 3] = ["tenants", "log", "identity"];
/// What folders begin with in which a node keeps what it had as another member.
const PREFIX_TAKEN: &str = "replaced-";
/// The region of who names none.
const DEFAULT_REGION: &str = "default";

checked_text!(
    /// The name of a region: 1 to 63 of a-z, 0-9 and -.
    Region, check
);

impl Default for Region {
    fn default() -> Self {
        Self(DEFAULT_REGION.to_owned())
    }
}

impl Region {
    /// Whether it is the region of who names none.
    pub fn is_default(&self) -> bool {
        self.0 == DEFAULT_REGION
    }
}

fn check(region: &str) -> Result<(), String> {
    let of_a_name = |byte| matches!(byte, b'a'..=b'z' | b'0'..=b'9' | b'-');
    if !(1..=REGION_BYTES_MAX).contains(&region.len()) || !region.bytes().all(of_a_name) {
        return Err(format!("must be 1 to {REGION_BYTES_MAX} of a-z, 0-9 and -"));
    }
    if REGIONS_TAKEN.contains(&region) {
        return Err(format!("must not be one of {}", REGIONS_TAKEN.join(", ")));
    }
    if region.starts_with(PREFIX_TAKEN) {
        return Err(format!("must not begin with {PREFIX_TAKEN}"));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn regions_are_folder_names_that_are_not_ours() {
        let is_region = |text: &str| Region::try_from(text.to_owned()).is_ok();
        for right in ["default", "us-east-1", "logs", &"r".repeat(63)] {
            assert!(is_region(right), "{right}");
        }
        for bad in [
            "",
            "US",
            "a_b",
            "..",
            "a/b",
            "tenants",
            "log",
            "identity",
            "replaced-3",
            &"x".repeat(64),
        ] {
            assert!(!is_region(bad), "{bad}");
        }
    }
}
