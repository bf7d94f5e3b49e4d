//! The text of a CRR's triggers, as CR-SQLite stores it.

use crate::catalog::Shape;
use crate::sql::{ident, join, literal};

/// Names that the triggers of table `name` have, also those of older formats.
pub(crate) fn names(shape: &Shape) -> Vec<String> {
    let mut names = ["i", "u", "d"].map(|kind| format!("{}__crsql_{kind}trig", shape.name)).to_vec();
    names.extend(shape.keys.iter().map(|k| format!("{}_{k}__crsql_utrig", shape.name)));
    names
}

/// The three CREATE TRIGGER statements.
pub(crate) fn create(shape: &Shape) -> [String; 3] {
    let name = &shape.name;
    let trigger = |kind: char| ident(&format!("{name}__crsql_{kind}trig"));
    let (table, text) = (ident(name), literal(name));
    let list = |prefix: &str, columns: &[String]| join(columns, ",", |c| format!("{prefix}.{}", ident(c)));
    let (new_keys, old_keys) = (list("NEW", &shape.keys), list("OLD", &shape.keys));
    let mut update = format!("{text}, {new_keys}, {old_keys}");
    if !shape.columns.is_empty() {
        let (new, old) = (list("NEW", &shape.columns), list("OLD", &shape.columns));
        update = format!("{update}, {new}, {old}");
    }
    [
        format!(
            "CREATE TRIGGER {}
      AFTER INSERT ON {table} WHEN crsql_internal_sync_bit() = 0
      BEGIN
        VALUES (crsql_after_insert({text}, {new_keys}));
      END",
            trigger('i')
        ),
        format!(
            "CREATE TRIGGER {}
      AFTER UPDATE ON {table} WHEN crsql_internal_sync_bit() = 0
      BEGIN
        VALUES (crsql_after_update({update}));
      END",
            trigger('u')
        ),
        format!(
            "CREATE TRIGGER {}
    AFTER DELETE ON {table} WHEN crsql_internal_sync_bit() = 0
    BEGIN
      VALUES (crsql_after_delete({text}, {old_keys}));
    END",
            trigger('d')
        ),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_are_those_of_the_format() {
        let shape =
            Shape { name: "foo".into(), keys: vec!["b".into(), "a".into()], columns: vec!["c".into(), "d".into()] };
        let [insert, update, delete] = create(&shape);
        assert!(insert.contains(r#"VALUES (crsql_after_insert('foo', NEW."b",NEW."a"));"#));
        assert!(update.contains(
            r#"VALUES (crsql_after_update('foo', NEW."b",NEW."a", OLD."b",OLD."a", NEW."c",NEW."d", OLD."c",OLD."d"));"#
        ));
        assert!(delete.contains(r#"VALUES (crsql_after_delete('foo', OLD."b",OLD."a"));"#));
        let keys_only = Shape { columns: vec![], ..shape };
        assert!(create(&keys_only)[1].contains(r#"(crsql_after_update('foo', NEW."b",NEW."a", OLD."b",OLD."a"));"#));
    }
}
