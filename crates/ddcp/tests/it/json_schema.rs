//! Checks JSON against a schema: the part of JSON Schema 2020-12 that `docs/control.schema.json` uses, all of it. A
//! keyword that is not known here is a failure, so a schema that uses more cannot pass unread.
//!
//! It is stricter than a client should be: where a schema names an object's fields, there may be no others.

use serde_json::{Map, Value};

/// Keywords that say nothing about what is valid.
const WORDS: [&str; 4] = ["$schema", "title", "description", "$defs"];

pub(crate) struct Schema(Value);

impl Schema {
    pub(crate) fn parse(text: &str) -> Self {
        let schema = Self(serde_json::from_str(text).unwrap());
        for definition in schema.definitions().values() {
            schema.check_words(definition);
        }
        schema
    }

    pub(crate) fn definitions(&self) -> &Map<String, Value> {
        self.0["$defs"].as_object().unwrap()
    }

    /// Fails unless `value` is as the definition `name` says.
    pub(crate) fn assert_valid(&self, name: &str, value: &Value) {
        let definition = self.definitions().get(name).unwrap_or_else(|| panic!("nothing is said of {name}: {value}"));
        self.check(definition, value).unwrap_or_else(|why| panic!("not as {name} says: {why}\n{value:#}"));
    }

    /// Fails if a keyword is not one of those that [`Schema::check`] knows.
    fn check_words(&self, schema: &Value) {
        for (word, rule) in schema.as_object().unwrap() {
            match word.as_str() {
                "type" | "const" | "enum" | "required" | "minimum" | "maximum" => {}
                "properties" => rule.as_object().unwrap().values().for_each(|schema| self.check_words(schema)),
                "additionalProperties" if rule.is_boolean() => {}
                "additionalProperties" | "items" => self.check_words(rule),
                "oneOf" => rule.as_array().unwrap().iter().for_each(|schema| self.check_words(schema)),
                "$ref" => drop(self.definition(rule)),
                word => assert!(WORDS.contains(&word), "the keyword {word} is not checked"),
            }
        }
    }

    fn definition(&self, reference: &Value) -> &Value {
        let name = reference.as_str().unwrap().strip_prefix("#/$defs/").unwrap();
        self.definitions().get(name).unwrap_or_else(|| panic!("there is no definition {name}"))
    }

    fn check(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let said = |holds: bool, what: &str| if holds { Ok(()) } else { Err(format!("{value} {what}")) };
        for (word, rule) in schema.as_object().unwrap() {
            match word.as_str() {
                "$ref" => self.check(self.definition(rule), value)?,
                "type" => said(is_of_type(rule, value), &format!("is not of type {rule}"))?,
                "const" => said(rule == value, &format!("is not {rule}"))?,
                "enum" => said(rule.as_array().unwrap().contains(value), &format!("is none of {rule}"))?,
                "minimum" => said(value.as_f64() >= rule.as_f64() || !value.is_number(), &format!("is below {rule}"))?,
                "maximum" => said(value.as_f64() <= rule.as_f64() || !value.is_number(), &format!("is above {rule}"))?,
                "required" => {
                    for name in rule.as_array().unwrap().iter().filter_map(Value::as_str) {
                        said(!value.is_object() || value.get(name).is_some(), &format!("has no {name}"))?;
                    }
                }
                "items" => value.as_array().into_iter().flatten().try_for_each(|item| self.check(rule, item))?,
                "oneOf" => self.check_one(rule.as_array().unwrap(), value)?,
                // With the properties.
                "additionalProperties" | "properties" => {}
                word => assert!(WORDS.contains(&word), "{word}"),
            }
        }
        self.check_properties(schema, value)
    }

    fn check_one(&self, schemas: &[Value], value: &Value) -> Result<(), String> {
        let results: Vec<_> = schemas.iter().map(|schema| self.check(schema, value)).collect();
        match results.iter().filter(|result| result.is_ok()).count() {
            1 => Ok(()),
            0 => Err(format!("{value} is none of {} shapes: {results:?}", schemas.len())),
            several => Err(format!("{value} is {several} shapes at once")),
        }
    }

    fn check_properties(&self, schema: &Value, value: &Value) -> Result<(), String> {
        let (properties, others) = (schema.get("properties"), schema.get("additionalProperties"));
        let Some(fields) = value.as_object().filter(|_| properties.is_some() || others.is_some()) else {
            return Ok(());
        };
        for (name, value) in fields {
            match (properties.and_then(|known| known.get(name)), others) {
                (Some(schema), _) => self.check(schema, value).map_err(|why| format!("{name}: {why}"))?,
                (None, Some(Value::Bool(true))) => {}
                (None, Some(schema)) if schema.is_object() => self.check(schema, value)?,
                (None, _) => return Err(format!("there is a field {name}, of which the schema says nothing")),
            }
        }
        Ok(())
    }
}

fn is_of_type(rule: &Value, value: &Value) -> bool {
    let is_of = |name: &Value| match name.as_str().unwrap() {
        "string" => value.is_string(),
        "integer" => value.is_i64() || value.is_u64(),
        "number" => value.is_number(),
        "boolean" => value.is_boolean(),
        "null" => value.is_null(),
        "object" => value.is_object(),
        "array" => value.is_array(),
        name => panic!("there is no type {name}"),
    };
    rule.as_array().map_or_else(|| is_of(rule), |names| names.iter().any(is_of))
}

#[test]
fn what_does_not_fit_is_noticed() {
    let schema = Schema::parse(
        r##"{"$defs": {
            "count": {"type": "integer", "minimum": 0, "maximum": 9},
            "open": {"type": "object", "additionalProperties": {"$ref": "#/$defs/count"}},
            "closed": {"type": "object", "properties": {"a": {"enum": ["x", null]}, "b": {"type": ["array", "null"],
                       "items": {"$ref": "#/$defs/count"}}}, "required": ["a"]},
            "either": {"oneOf": [{"$ref": "#/$defs/closed"}, {"const": 7}, {"$ref": "#/$defs/count"}]}}}"##,
    );
    let check = |name: &str, text: &str| {
        schema.check(&schema.definitions()[name], &serde_json::from_str(text).unwrap()).is_ok()
    };
    for (name, text, fits) in [
        ("count", "0", true),
        ("count", "9", true),
        ("count", "-1", false),
        ("count", "10", false),
        ("count", "1.5", false),
        ("count", "\"1\"", false),
        ("open", "{}", true),
        ("open", r#"{"z": 3}"#, true),
        ("open", r#"{"z": "3"}"#, false),
        ("open", "[]", false),
        ("closed", r#"{"a": null}"#, true),
        ("closed", r#"{"a": "x", "b": [1, 2]}"#, true),
        ("closed", r#"{"a": "x", "b": [1, -2]}"#, false),
        ("closed", r#"{"a": "y"}"#, false),
        ("closed", r#"{"b": null}"#, false),
        ("closed", r#"{"a": "x", "c": 1}"#, false),
        ("either", r#"{"a": "x"}"#, true),
        ("either", "3", true),
        ("either", "7", false),
        ("either", "true", false),
    ] {
        assert_eq!(check(name, text), fits, "{name}: {text}");
    }
}

#[test]
#[should_panic = "the keyword pattern is not checked"]
fn a_keyword_that_is_not_checked_is_noticed() {
    Schema::parse(r#"{"$defs": {"a": {"type": "string", "pattern": "^a"}}}"#);
}
