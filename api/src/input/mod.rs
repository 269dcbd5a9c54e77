//! What clients send: paths, queries, headers and bodies, read into values that cannot be bad.

pub(crate) mod extract;
pub(crate) mod fields;
pub(crate) mod payload;
pub(crate) mod raw_json;
pub(crate) mod values;
