//! Renders templates.
