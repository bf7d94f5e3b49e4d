//! What `ddcp` logs.

use std::{
    fmt,
    io::{self, IsTerminal},
};

use tracing::field::Field;
use tracing_subscriber::{
    field::MakeExt,
    fmt::format::{self, Writer},
};

use super::Global;
use crate::text::shown_of;

/// Logs go to stderr: for `serve` what happens, for other commands only what their own message does not say. Of
/// Veilid's own events nothing, unless `RUST_LOG` asks.
pub(super) fn init(global: &Global, serving: bool) {
    let level = match (global.quiet, global.verbose, serving) {
        (true, ..) => "error",
        // That a database was given a new site id, or a state file was damaged, nobody expects to hear: it is said unasked.
        (_, 0, false) => "error,ddcp::repo::identity=warn,ddcp::repo::mend=warn",
        (_, 0, true) | (_, 1, false) => "info",
        _ => "debug",
    };
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new(format!("off,ddcp={level}")));
    let _ = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .fmt_fields(format::debug_fn(field).delimited(" "))
        .with_writer(io::stderr)
        .with_ansi(io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty()))
        .try_init();
}

/// Writes a field, whose text may be somebody else's.
fn field(out: &mut Writer<'_>, field: &Field, value: &dyn fmt::Debug) -> fmt::Result {
    let value = shown_of(format_args!("{value:?}"));
    match field.name() {
        "message" => out.write_str(&value),
        name => write!(out, "{name}={value}"),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::{Arc, Mutex};

    use super::*;

    #[derive(Clone, Default)]
    struct Lines(Arc<Mutex<Vec<u8>>>);

    impl io::Write for Lines {
        fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
            self.0.lock().unwrap().extend_from_slice(bytes);
            Ok(bytes.len())
        }

        fn flush(&mut self) -> io::Result<()> {
            Ok(())
        }
    }

    #[test]
    fn what_others_chose_is_one_line_of_a_log() {
        let lines = Lines::default();
        let made = lines.clone();
        let subscriber = tracing_subscriber::fmt()
            .with_writer(move || made.clone())
            .with_ansi(false)
            .without_time()
            .with_target(false)
            .fmt_fields(format::debug_fn(field).delimited(" "))
            .finish();
        let name = "a\nERROR b\u{1b}[2J\u{202e}";
        tracing::subscriber::with_default(subscriber, || {
            tracing::warn!(table = %name, text = name, number = 7, "a change of {name} is left out");
        });
        let text = String::from_utf8(lines.0.lock().unwrap().clone()).unwrap();
        let shown = "a\\nERROR b\\u{1b}[2J\\u{202e}";
        assert!(text.starts_with(&format!(" WARN a change of {shown} is left out table={shown} text=\"")), "{text}");
        assert!(text.ends_with(" number=7\n") && text.lines().count() == 1, "{text}");
        assert!(!text.contains('\u{1b}') && !text.contains('\u{202e}'), "{text}");
    }
}
