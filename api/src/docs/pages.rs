//! The pages for people. They load nothing and run nothing.

use std::fmt::Write as _;

use utoipa::openapi::OpenApi;
use utoipa::openapi::path::{Operation, PathItem};

/// The start page.
pub(crate) const START: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>shiioo</title>
<style>body{font:16px/1.5 system-ui,sans-serif;max-width:40em;margin:4em auto;padding:0 1em}</style>
</head><body><h1>shiioo</h1><ul>
<li><a href="/docs">The API</a> (<a href="/api/openapi.json">OpenAPI document</a>)</li>
<li><a href="/api/cluster/health">Cluster health</a>, <a href="/api/cluster/nodes">nodes</a>, <a href="/api/tenants">tenants</a></li>
<li><a href="/readyz">Readiness</a>, <a href="/healthz">liveness</a>, <a href="/metrics">metrics</a></li>
</ul></body></html>
"#;

const HEAD: &str = r#"<!doctype html>
<html lang="en"><head><meta charset="utf-8"><title>shiioo API</title>
<style>body{font:15px/1.4 system-ui,sans-serif;max-width:70em;margin:2em auto;padding:0 1em}
td{padding:.2em .8em;vertical-align:top}td:nth-child(-n+2){font-family:monospace}</style>
</head><body><h1>shiioo API</h1>
<p>The whole of it: <a href="/api/openapi.json">OpenAPI document</a>.</p><table>
"#;

/// Writes a line for each operation, by path.
pub(crate) fn operations(document: &OpenApi) -> String {
    let mut page = HEAD.to_owned();
    for (path, item) in &document.paths.paths {
        for (method, operation) in methods(item) {
            let summary = operation.summary.as_deref().unwrap_or_default();
            // Writing to a String cannot fail.
            let _ = writeln!(
                page,
                "<tr><td>{method}</td><td>{}</td><td>{}</td></tr>",
                Escaped(path),
                Escaped(summary)
            );
        }
    }
    page.push_str("</table></body></html>\n");
    page
}

/// Lists the operations of a path, each with its method.
pub(crate) fn methods(item: &PathItem) -> impl Iterator<Item = (&'static str, &Operation)> {
    [
        ("GET", item.get.as_ref()),
        ("POST", item.post.as_ref()),
        ("PUT", item.put.as_ref()),
        ("DELETE", item.delete.as_ref()),
    ]
    .into_iter()
    .filter_map(|(method, operation)| Some((method, operation?)))
}

struct Escaped<'a>(&'a str);

impl std::fmt::Display for Escaped<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for c in self.0.chars() {
            match c {
                '<' => f.write_str("&lt;")?,
                '>' => f.write_str("&gt;")?,
                '&' => f.write_str("&amp;")?,
                '"' => f.write_str("&quot;")?,
                c => f.write_char(c)?,
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_that_is_shown_is_markup() {
        assert_eq!(
            Escaped(r#"<a b="c">&'</a>"#).to_string(),
            "&lt;a b=&quot;c&quot;&gt;&amp;'&lt;/a&gt;"
        );
    }
}
