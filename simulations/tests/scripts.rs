//! The stories in `scripts/` come to what their transcripts say.
#![allow(clippy::disallowed_methods, reason = "the stories are files")]

use std::fs;
use std::path::Path;

use simulations::script::{Script, tell};

#[test]
fn every_story_comes_to_what_its_transcript_says() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("scripts");
    let mut stories = 0;
    for entry in fs::read_dir(folder).expect("the folder of the stories") {
        let file = entry.expect("an entry").path();
        if file.extension().is_none_or(|extension| extension != "story") {
            continue;
        }
        let script = Script::parse(&fs::read_to_string(&file).expect("a story"));
        let told = tell(&script.expect("a script"), false);
        let expected = fs::read_to_string(file.with_extension("transcript")).unwrap_or_default();
        let name = file.display();
        assert_eq!(told.violation, None, "{name}\n{}", told.transcript);
        assert_eq!(
            told.transcript, expected,
            "{name}: if this is as it should be: cargo run -p simulations -- script --bless"
        );
        stories += 1;
    }
    assert!(stories > 0, "there are no stories");
}

#[test]
fn a_story_is_the_same_every_time() {
    let script = Script::parse("nodes 3\nsettle\nkill leader\nelect\n").expect("a script");
    let (one, two) = (tell(&script, true), tell(&script, true));
    assert_eq!(one, two);
    assert!(one.trace.events > 0);
}
