//! Text that somebody else chose, where people read it: on a terminal, in a log. Nothing in it moves the cursor, begins a
//! line, or has what stands beside it read in another order.

use std::fmt::{self, Write};

/// Whether `c` is shown as it is: no control character, line or paragraph separator, and none of those that cannot be seen
/// and change how others are ordered. The two that join letters, which scripts need, are.
pub(crate) fn is_plain(c: char) -> bool {
    !c.is_control()
        && !matches!(c,
            '\u{ad}'
            | '\u{61c}'
            | '\u{180e}'
            | '\u{200b}'
            | '\u{200e}'..='\u{200f}'
            | '\u{2028}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}'
            | '\u{feff}'
            | '\u{fff9}'..='\u{fffb}'
            | '\u{e0000}'..='\u{e007f}'
        )
}

/// `text` with what is not plain written as in Rust and Python: `\n`, `\u{202e}`.
pub(crate) fn shown(text: &str) -> String {
    let mut result = String::with_capacity(text.len());
    text.chars().for_each(|c| push(&mut result, c));
    result
}

/// As [`shown`], what `value` is displayed as.
pub(crate) fn shown_of(value: impl fmt::Display) -> String {
    struct Shown(String);
    impl Write for Shown {
        fn write_str(&mut self, text: &str) -> fmt::Result {
            text.chars().for_each(|c| push(&mut self.0, c));
            Ok(())
        }
    }
    let mut result = Shown(String::new());
    // Memory takes every write.
    let _ = write!(result, "{value}");
    result.0
}

fn push(result: &mut String, c: char) {
    match is_plain(c) {
        true => result.push(c),
        false => result.extend(c.escape_default()),
    }
}

/// A JSON document that has its texts' unseen characters escaped; it says the same.
pub(crate) fn shown_json(json: &str) -> String {
    let mut result = String::with_capacity(json.len());
    for c in json.chars() {
        // Those stand in a document only between tokens.
        if is_plain(c) || matches!(c, '\n' | '\r' | '\t') {
            result.push(c);
            continue;
        }
        for unit in c.encode_utf16(&mut [0; 2]) {
            let _ = write!(result, "\\u{unit:04x}");
        }
    }
    result
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn what_a_terminal_would_obey_is_escaped_and_writing_is_not() {
        for plain in
            ["", "note", "it's \"\\\"", "Zürich", "e\u{301}", "می\u{200c}خواهم", "हिन्दी", "👩\u{200d}🚀", "日本"]
        {
            assert_eq!(shown(plain), plain);
        }
        for (text, expected) in [
            ("a\nb\r", "a\\nb\\r"),
            ("\u{1b}[2J", "\\u{1b}[2J"),
            ("\u{9b}31m\u{7f}", "\\u{9b}31m\\u{7f}"),
            ("x\u{202e}gpj.exe", "x\\u{202e}gpj.exe"),
            ("\u{2028}\u{feff}\u{2066}\u{e0041}", "\\u{2028}\\u{feff}\\u{2066}\\u{e0041}"),
        ] {
            assert_eq!(shown(text), expected);
            assert_eq!(shown_of(text), expected);
        }
    }

    proptest! {
        #[test]
        fn json_says_the_same(text: String, pretty: bool) {
            let value = serde_json::json!({ "text": text, "bidi": format!("\u{202e}{text}\u{9b}\u{e0041}") });
            let json = if pretty { serde_json::to_string_pretty(&value) } else { serde_json::to_string(&value) };
            let json = shown_json(&json.unwrap());
            prop_assert_eq!(serde_json::from_str::<serde_json::Value>(&json).unwrap(), value);
            prop_assert!(json.chars().all(|c| is_plain(c) || c == '\n'));
        }

        #[test]
        fn what_is_shown_is_plain(text: String) {
            prop_assert!(shown(&text).chars().all(is_plain));
        }
    }
}
