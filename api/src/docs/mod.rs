//! The documents: OpenAPI, and the pages for people.

pub(crate) mod openapi;
pub(crate) mod pages;

use std::sync::OnceLock;

use bytes::Bytes;

use crate::docs::openapi::DocumentedRoute;

/// The documents of one node. They are made when they are asked for first.
#[derive(Debug)]
pub(crate) struct Documents {
    version: &'static str,
    routes: Vec<DocumentedRoute>,
    openapi: OnceLock<Bytes>,
}

impl Documents {
    /// Keeps what the documents are made of.
    pub(crate) fn new(version: &'static str, routes: Vec<DocumentedRoute>) -> Self {
        Self { version, routes, openapi: OnceLock::new() }
    }

    /// Gives the OpenAPI document as JSON.
    pub(crate) fn openapi(&self) -> Bytes {
        self.openapi.get_or_init(|| openapi::json(self.version, &self.routes)).clone()
    }

    /// Writes the operations as a page.
    pub(crate) fn page(&self) -> String {
        pages::operations(&openapi::document(self.version, &self.routes))
    }
}
