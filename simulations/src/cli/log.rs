//! The program's own log, put into the story at the moment and under the node where it was written.

use std::fmt;

use simulations::env::trace;
use tracing::field::{Field, Visit};
use tracing::span::{Attributes, Id};
use tracing::{Event, Subscriber};
use tracing_subscriber::EnvFilter;
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};
use tracing_subscriber::registry::LookupSpan;

/// The span that turmoil opens around a host's turn, with the host's name in it.
const HOST_SPAN: &str = "turmoil[node]=info";

/// Puts what the filter lets through into the stories of all runs of this process.
///
/// # Errors
/// When the filter is none.
pub fn into_story(filter: &str) -> Result<(), String> {
    let filter = EnvFilter::try_new(format!("{filter},{HOST_SPAN}"));
    let filter = filter.map_err(|error| error.to_string())?;
    let subscriber = tracing_subscriber::registry().with(filter).with(Story);
    tracing::subscriber::set_global_default(subscriber).map_err(|error| error.to_string())
}

struct Story;

/// The name of a host, kept with its span.
struct Host(String);

impl<S: Subscriber + for<'a> LookupSpan<'a>> Layer<S> for Story {
    fn on_new_span(&self, attributes: &Attributes<'_>, id: &Id, context: Context<'_, S>) {
        if attributes.metadata().name() != "node" {
            return;
        }
        let mut text = Text::default();
        attributes.record(&mut text);
        if let (Some(span), Some(name)) = (context.span(id), text.name) {
            span.extensions_mut().insert(Host(name));
        }
    }

    fn on_event(&self, event: &Event<'_>, context: Context<'_, S>) {
        let mut text = Text::default();
        event.record(&mut text);
        let host = context.event_scope(event).and_then(|scope| {
            scope
                .from_root()
                .find_map(|span| span.extensions().get::<Host>().map(|Host(name)| name.clone()))
        });
        let (level, target) = (event.metadata().level(), event.metadata().target());
        let who = host.as_deref().unwrap_or("?");
        trace::note(who, "log", format_args!("{level} {target}: {}", text.text));
    }
}

/// The fields of an event in a line.
#[derive(Default)]
struct Text {
    text: String,
    name: Option<String>,
}

impl Visit for Text {
    fn record_str(&mut self, field: &Field, value: &str) {
        if field.name() == "name" {
            self.name = Some(value.to_owned());
        }
        self.record_debug(field, &format_args!("{value}"));
    }

    fn record_debug(&mut self, field: &Field, value: &dyn fmt::Debug) {
        use fmt::Write as _;
        // Writing to a String cannot fail.
        let _ = match field.name() {
            "message" => write!(self.text, "{value:?} "),
            name => write!(self.text, "{name}={value:?} "),
        };
    }
}
