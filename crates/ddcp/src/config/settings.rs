//! Single settings by their dotted keys, for `ddcp config`.

use std::{collections::BTreeMap, path::Path};

use serde::Serialize;
use toml_edit::{DocumentMut, Item, Table, Value};

use super::{Access, Config, ConfigError, Limits, edit_document};

/// The settings that `ddcp config` knows, by their keys, with their values as text.
#[must_use]
pub fn settings(config: &Config) -> BTreeMap<String, String> {
    #[derive(Serialize)]
    struct Known<'a> {
        access: Access,
        limits: &'a Limits,
    }
    let mut settings = BTreeMap::new();
    // Plain words and numbers can always be written as TOML.
    let table = toml::Table::try_from(Known { access: config.access, limits: &config.limits }).unwrap_or_default();
    for (key, value) in table {
        match value {
            toml::Value::Table(table) => {
                settings.extend(table.into_iter().map(|(name, value)| (format!("{key}.{name}"), plain(&value))));
            }
            value => drop(settings.insert(key, plain(&value))),
        }
    }
    settings
}

fn plain(value: &toml::Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

/// Gives the setting `key` another value in the settings in `path`.
///
/// # Errors
/// [`ConfigError::NoSetting`], [`ConfigError::Value`] where the value is not one for it, and those of
/// [`Config::load`].
pub fn set_setting(path: &Path, key: &str, text: &str) -> Result<(), ConfigError> {
    let known = settings(&Config::default());
    if !known.contains_key(key) {
        let keys = known.into_keys().collect::<Vec<_>>().join(", ");
        return Err(ConfigError::NoSetting { key: key.to_owned(), keys });
    }
    let wrong = |reason: String| ConfigError::Value { key: key.to_owned(), value: text.to_owned(), reason };
    let value = match key.split_once('.') {
        None => Value::from(text),
        Some(_) => Value::from(text.parse::<i64>().map_err(|_| wrong("it must be a whole number".to_owned()))?),
    };
    edit_document(path, |_, document| {
        put(document, key, value);
        match Config::parse(&document.to_string()) {
            Ok(_) => Ok(()),
            Err(reason) => Err(wrong(reason.split_once(": ").map_or(reason.clone(), |(_, what)| what.to_owned()))),
        }
    })
}

/// Sets `key`, keeping what is written behind it; a new one at the top comes after the comment that heads the file.
fn put(document: &mut DocumentMut, key: &str, value: Value) {
    let (table, name) = match key.split_once('.') {
        Some((table, name)) => {
            let item = document.entry(table).or_insert_with(|| Item::Table(Table::new()));
            let Some(table) = item.as_table_like_mut() else { return };
            (table, name)
        }
        None => {
            head_comment_first(document, key);
            (document.as_table_mut() as &mut dyn toml_edit::TableLike, key)
        }
    };
    match table.get_mut(name).and_then(Item::as_value_mut) {
        Some(old) => {
            let decor = old.decor().clone();
            *old = value;
            *old.decor_mut() = decor;
        }
        None => drop(table.insert(name, Item::Value(value))),
    }
}

/// In a file of nothing but comments they are taken to head it.
fn head_comment_first(document: &mut DocumentMut, key: &str) {
    if !document.is_empty() {
        return;
    }
    let mut comment = document.trailing().as_str().unwrap_or_default().to_owned();
    if !comment.is_empty() && !comment.ends_with('\n') {
        comment.push('\n');
    }
    document.set_trailing("");
    document.insert(key, Item::Value(Value::from("")));
    if let Some(mut key) = document.key_mut(key) {
        key.leaf_decor_mut().set_prefix(comment);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    fn changed(text: &str, key: &str, value: &str) -> Result<String, ConfigError> {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        fs::write(&path, text).unwrap();
        set_setting(&path, key, value)?;
        Ok(fs::read_to_string(&path).unwrap())
    }

    #[test]
    fn settings_are_changed_and_comments_kept() {
        for (before, key, value, after) in [
            ("# mine\n", "access", "private", "# mine\naccess = \"private\"\n"),
            ("# no end", "access", "private", "# no end\naccess = \"private\"\n"),
            ("", "access", "private", "access = \"private\"\n"),
            ("access = \"private\" # for us\n", "access", "address", "access = \"address\" # for us\n"),
            ("[limits]\ncallers = 3 # few\n# end\n", "limits.callers", "4", "[limits]\ncallers = 4 # few\n# end\n"),
            ("# a\n[remotes.b]\naddress = \"b.db\"\n", "limits.callers", "4", {
                "# a\n[remotes.b]\naddress = \"b.db\"\n\n[limits]\ncallers = 4\n"
            }),
            ("[remotes.b] # b\naddress = \"b.db\"\n", "access", "private", {
                "access = \"private\"\n[remotes.b] # b\naddress = \"b.db\"\n"
            }),
        ] {
            assert_eq!(changed(before, key, value).unwrap(), after, "{before:?}");
        }
    }

    #[test]
    fn what_is_set_is_read() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("config.toml");
        for key in settings(&Config::default()).into_keys() {
            let value = if key == "access" { "private" } else { "7" };
            set_setting(&path, &key, value).unwrap();
            assert_eq!(settings(&Config::load(&path).unwrap())[&key], value, "{key}");
        }
    }

    #[test]
    fn wrong_keys_and_values_are_refused_and_change_nothing() {
        for (key, value, reason) in [
            ("acces", "private", "there is no setting `acces`"),
            ("limits", "3", "there is no setting `limits`"),
            ("access", "public", "`public` is no value for `access`: unknown variant `public`"),
            ("limits.callers", "many", "`many` is no value for `limits.callers`: it must be a whole number"),
            ("limits.callers", "0", "`0` is no value for `limits.callers`: invalid value: integer `0`"),
            ("limits.callers", "-1", "`-1` is no value for `limits.callers`: invalid value: integer `-1`"),
        ] {
            let message = changed("# a\n", key, value).unwrap_err().to_string();
            assert!(message.starts_with(reason), "{message}");
        }
    }
}
