//! What templates of one render may name: the run's input and the outputs of its steps, each parsed
//! when it is first named.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use minijinja::value::{Enumerator, Object};
use minijinja::{Error, ErrorKind, Value as TemplateValue};

use super::parsed::{Parsed, Part, tree_bytes};
use crate::domain::ids::RunId;
use crate::domain::json::Json;

/// Most memory for the parsed values that one render names, bytes.
const TREES_BYTES_MAX: usize = 128 << 20;
/// Most memory of parsed values that one string may have its operators and filters look at, bytes;
/// a value counts each time that it is named.
const TOUCHED_BYTES_MAX: usize = 4 << 30;

/// Where the names of one render come from.
pub struct Context {
    source: Arc<Source>,
}

/// What a run offers to the templates of its steps.
#[derive(Debug)]
pub struct Offer {
    /// The run.
    pub run: RunId,
    /// Its input.
    pub input: Json,
    /// Outputs of the completed steps that are named, by id, with the steps' indices.
    pub outputs: BTreeMap<String, (u16, Json)>,
}

/// When a render is to be given up.
#[derive(Clone, Default)]
pub struct Limits {
    /// When this says that its time is up. The caller has the clock.
    pub is_late: Option<Arc<dyn Fn() -> bool + Send + Sync>>,
    /// When nobody waits for it any more.
    pub cancelled: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Source {
    offer: Offer,
    parsed: Arc<Parsed>,
    limits: Limits,
    /// What this render has named so far, and what it may still name, bytes.
    trees: Mutex<(BTreeSet<Part>, usize)>,
    /// What the present string may still look at, bytes.
    touches: AtomicUsize,
}

impl fmt::Debug for Context {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Context").finish_non_exhaustive()
    }
}

impl Context {
    /// Offers the names of a run.
    pub fn new(offer: Offer, parsed: Arc<Parsed>, limits: Limits) -> Self {
        let trees = Mutex::new((BTreeSet::new(), TREES_BYTES_MAX));
        let touches = AtomicUsize::new(TOUCHED_BYTES_MAX);
        Self { source: Arc::new(Source { offer, parsed, limits, trees, touches }) }
    }

    /// The names, for the engine, and for one string.
    pub(super) fn names(&self) -> TemplateValue {
        self.source.touches.store(TOUCHED_BYTES_MAX, Ordering::Relaxed);
        TemplateValue::from_object(Root(Arc::clone(&self.source)))
    }

    /// Whether time is over, or nobody waits any more.
    pub(super) fn is_over(&self) -> bool {
        self.source.is_over()
    }
}

impl fmt::Debug for Limits {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Limits").field("cancelled", &self.cancelled).finish_non_exhaustive()
    }
}

impl Limits {
    /// Whether nobody waits any more.
    pub fn is_cancelled(&self) -> bool {
        // Ordered with the notes of who gave up.
        self.cancelled.load(Ordering::SeqCst)
    }
}

impl Source {
    fn is_over(&self) -> bool {
        self.limits.is_cancelled() || self.limits.is_late.as_ref().is_some_and(|is_late| is_late())
    }

    /// A part of the run as a value; an invalid one, which ends the render, when that costs too much.
    fn get(&self, part: Part, json: &Json) -> TemplateValue {
        self.parse(part, json).unwrap_or_else(TemplateValue::from)
    }

    fn parse(&self, part: Part, json: &Json) -> Result<TemplateValue, Error> {
        // Whatever takes long names something again and again: this is where it is stopped.
        if self.is_over() {
            return Err(invalid("there is no time left"));
        }
        let bytes = tree_bytes(json.as_str());
        let touched = |left: usize| left.checked_sub(bytes);
        if self.touches.fetch_update(Ordering::Relaxed, Ordering::Relaxed, touched).is_err() {
            return Err(invalid("this string names large values too often"));
        }
        self.charge(part, bytes)?;
        self.parsed.get((self.offer.run, part), json, bytes)
    }

    /// Takes a value's memory from what the render may use, the first time that it is named. Whether
    /// it is parsed already does not count: as long as it is held here, it cannot be freed.
    fn charge(&self, part: Part, bytes: usize) -> Result<(), Error> {
        let mut trees = self.trees.lock().unwrap_or_else(PoisonError::into_inner);
        let (named, left) = &mut *trees;
        if named.insert(part) {
            *left = left
                .checked_sub(bytes)
                .ok_or_else(|| invalid("the values that are named need too much memory"))?;
        }
        Ok(())
    }

    fn output(self: &Arc<Self>, id: &str) -> Option<TemplateValue> {
        let (step, _) = self.offer.outputs.get(id)?;
        let output = Output { source: Arc::clone(self), id: id.to_owned(), step: *step };
        Some(TemplateValue::from_object(output))
    }
}

fn invalid(message: &'static str) -> Error {
    Error::new(ErrorKind::InvalidOperation, message)
}

/// `input` and `steps`.
#[derive(Debug)]
struct Root(Arc<Source>);

impl Object for Root {
    fn get_value(self: &Arc<Self>, key: &TemplateValue) -> Option<TemplateValue> {
        match key.as_str()? {
            "input" => Some(self.0.get(Part::Input, &self.0.offer.input)),
            "steps" => Some(TemplateValue::from_object(Steps(Arc::clone(&self.0)))),
            _ => None,
        }
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["input", "steps"])
    }
}

/// The completed steps, by id.
#[derive(Debug)]
struct Steps(Arc<Source>);

impl Object for Steps {
    fn get_value(self: &Arc<Self>, key: &TemplateValue) -> Option<TemplateValue> {
        self.0.output(key.as_str()?)
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Values(self.0.offer.outputs.keys().cloned().map(TemplateValue::from).collect())
    }
}

/// One completed step: its `output`.
#[derive(Debug)]
struct Output {
    source: Arc<Source>,
    id: String,
    step: u16,
}

impl Object for Output {
    fn get_value(self: &Arc<Self>, key: &TemplateValue) -> Option<TemplateValue> {
        if key.as_str()? != "output" {
            return None;
        }
        let (_, output) = self.source.offer.outputs.get(&self.id)?;
        Some(self.source.get(Part::Step(self.step), output))
    }

    fn enumerate(self: &Arc<Self>) -> Enumerator {
        Enumerator::Str(&["output"])
    }
}
