//! Triggers of the user's: what they write, and whether that is recorded when a merge sets them off.

use std::collections::{BTreeMap, BTreeSet};

use rusqlite::Connection;

use super::{
    super::{
        TableShape,
        schema::quote,
        tokens::{Token, one_line, tokens},
    },
    Remark, Remarked, in_one, text,
};

/// Tells a merge from a write of the application's.
const SYNC_BIT: &str = "crsql_internal_sync_bit";

/// What sets a trigger off.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Event {
    Insert,
    Update,
    Delete,
}

const EVENTS: [Event; 3] = [Event::Insert, Event::Update, Event::Delete];

/// A table, in small letters, and what is done to it.
type Write = (String, Event);

/// A trigger that is stored in the database.
pub(super) struct Trigger {
    pub(super) name: String,
    /// Its table or view.
    pub(super) table: String,
    pub(super) sql: String,
}

/// What is read from a trigger's text.
struct Parsed<'a> {
    event: Event,
    /// Where the condition, or else the program, begins: after `ON table` and `FOR EACH ROW`.
    head_end: usize,
    tokens: Vec<Token<'a>>,
    /// The place of `BEGIN` among the tokens.
    begin: usize,
}

impl Trigger {
    /// All that are stored, but those that belong to the engine.
    pub(super) fn of_user(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let all = Self::all(connection)?;
        Ok(all.into_iter().filter(|trigger| !trigger.is_engine_s()).collect())
    }

    /// All that are stored.
    pub(super) fn all(connection: &Connection) -> rusqlite::Result<Vec<Self>> {
        let mut statement =
            connection.prepare("SELECT name, tbl_name, sql FROM sqlite_master WHERE type = 'trigger' ORDER BY name")?;
        let row = |row: &rusqlite::Row<'_>| Ok(Self { name: text(row, 0)?, table: text(row, 1)?, sql: text(row, 2)? });
        statement.query_map([], row)?.collect()
    }

    fn is_engine_s(&self) -> bool {
        self.name.starts_with("__crsql_") || self.records()
    }

    /// Whether it has the engine record what was written, as the triggers of CRRs do.
    pub(super) fn records(&self) -> bool {
        tokens(&self.sql).iter().any(|token| {
            ["crsql_after_insert", "crsql_after_update", "crsql_after_delete"].iter().any(|name| token.is(name))
        })
    }

    /// The statement that removes it.
    pub(super) fn sql_drop(&self) -> String {
        format!("DROP TRIGGER IF EXISTS {}", quote(&self.name))
    }

    fn parse(&self) -> Option<Parsed<'_>> {
        let tokens = tokens(&self.sql);
        // A name may be the same word; the event comes before the first ON.
        let on = tokens.iter().skip(3).position(|token| token.is("ON"))? + 3;
        let event_at = tokens[3..on].iter().position(|token| event(token).is_some())? + 3;
        let event = event(&tokens[event_at])?;
        // The table may be named with its schema.
        let mut head = if tokens.get(on + 2)?.is_sign(".") { on + 4 } else { on + 2 };
        if tokens.get(head)?.is("FOR") {
            head += 3;
        }
        let is_begin = |at: usize| tokens[at].is("BEGIN") && !tokens[at - 1].is_sign(".");
        let begin = (head..tokens.len()).find(|at| is_begin(*at))?;
        Some(Parsed { event, head_end: tokens[head].at, tokens, begin })
    }

    /// The same trigger, which does nothing when it is a merge that writes.
    fn for_local_writes(&self) -> Option<String> {
        let Parsed { head_end, tokens, begin, .. } = self.parse()?;
        let head = tokens.iter().position(|token| token.at == head_end)?;
        let guard = format!("WHEN {SYNC_BIT}() = 0");
        let condition = match &tokens[head..begin] {
            [] => guard,
            [_when, condition @ ..] => format!("{guard} AND ({})", one_line(condition)),
        };
        Some(format!("{} {condition} {}", one_line(&tokens[..head]), one_line(&tokens[begin..])))
    }
}

fn event(token: &Token<'_>) -> Option<Event> {
    let words = [("INSERT", Event::Insert), ("UPDATE", Event::Update), ("DELETE", Event::Delete)];
    words.into_iter().find(|(word, _)| token.is(word)).map(|(_, event)| event)
}

impl Parsed<'_> {
    fn asks_for_merges(&self) -> bool {
        self.tokens.iter().any(|token| token.is(SYNC_BIT))
    }

    /// What its program writes to. SQLite takes no statement there whose target is not named at its beginning.
    fn writes(&self) -> BTreeSet<Write> {
        let program = &self.tokens[self.begin + 1..];
        program.split(|token| token.is_sign(";")).flat_map(writes_of).collect()
    }
}

fn writes_of(statement: &[Token<'_>]) -> Vec<Write> {
    let Some((first, rest)) = statement.split_first() else { return Vec::new() };
    let or = if rest.first().is_some_and(|token| token.is("OR")) { 2 } else { 0 };
    let target = |at: usize| rest.get(at).map(|token| token.name().to_ascii_lowercase());
    let mut writes = Vec::new();
    if first.is("UPDATE") {
        writes.extend(target(or).map(|table| (table, Event::Update)));
    } else if first.is("DELETE") {
        writes.extend(target(1).map(|table| (table, Event::Delete)));
    } else if first.is("INSERT") || first.is("REPLACE") {
        let is_upsert = rest.windows(2).any(|pair| pair[0].is("DO") && pair[1].is("UPDATE"));
        if let Some(table) = target(or + 1) {
            writes.extend(is_upsert.then(|| (table.clone(), Event::Update)));
            writes.push((table, Event::Insert));
        }
    }
    writes
}

/// The triggers that a merge sets off and that then write to tables which replicate: nobody records what they write,
/// and every database ends with another outcome.
pub(super) fn diverging(connection: &Connection, shared: &[TableShape]) -> rusqlite::Result<Vec<Remark>> {
    let stored = Trigger::of_user(connection)?;
    let names: BTreeMap<String, &str> =
        shared.iter().map(|table| (table.name.to_ascii_lowercase(), table.name.as_str())).collect();
    let parsed: Vec<(&Trigger, Parsed<'_>)> =
        stored.iter().filter_map(|trigger| Some((trigger, trigger.parse()?))).collect();
    let mut reached: BTreeSet<Write> =
        names.keys().flat_map(|table| EVENTS.map(|event| (table.clone(), event))).collect();
    let mut remarks = BTreeMap::new();
    let mut is_growing = true;
    while is_growing {
        is_growing = false;
        for (trigger, parsed) in &parsed {
            let set_off = reached.contains(&(trigger.table.to_ascii_lowercase(), parsed.event));
            if !set_off || parsed.asks_for_merges() {
                continue;
            }
            for (table, event) in parsed.writes() {
                if let Some(written) = names.get(&table) {
                    remarks.entry(&trigger.name).or_insert_with(|| remark(trigger, written));
                }
                is_growing |= reached.insert((table, event));
            }
        }
    }
    Ok(remarks.into_values().collect())
}

fn remark(trigger: &Trigger, written: &str) -> Remark {
    let what = Remarked::Diverging { trigger: trigger.name.clone(), written: written.to_owned() };
    let mend = trigger.for_local_writes().map(|rewritten| in_one(&[trigger.sql_drop(), rewritten]));
    Remark { table: trigger.table.clone(), what, mend }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn trigger(sql: &str) -> Trigger {
        Trigger { name: "t".into(), table: "note".into(), sql: sql.into() }
    }

    fn written(sql: &str) -> Vec<Write> {
        trigger(sql).parse().unwrap().writes().into_iter().collect()
    }

    #[test]
    fn what_a_trigger_writes() {
        let writes = written(
            "CREATE TRIGGER \"insert on\" BEFORE UPDATE OF a, b ON [note] FOR EACH ROW WHEN NEW.begin > 1 BEGIN
               SELECT CASE WHEN 1 THEN 2 END; -- UPDATE x
               UPDATE OR IGNORE \"One\" SET a = (SELECT ';' FROM b);
               INSERT INTO two SELECT * FROM c ON CONFLICT DO UPDATE SET x = 1;
               REPLACE INTO three VALUES (1); INSERT OR FAIL INTO four DEFAULT VALUES;
               DELETE FROM 'five'; END",
        );
        let write = |table: &str, event| (table.to_owned(), event);
        assert_eq!(
            writes,
            [
                write("five", Event::Delete),
                write("four", Event::Insert),
                write("one", Event::Update),
                write("three", Event::Insert),
                write("two", Event::Insert),
                write("two", Event::Update),
            ]
        );
    }

    #[test]
    fn rewritten_it_leaves_merges_alone() {
        let rewritten = |sql: &str| trigger(sql).for_local_writes().unwrap();
        assert_eq!(
            rewritten("CREATE TRIGGER t AFTER UPDATE ON note\nBEGIN\n  -- now\n  UPDATE note SET at = 'x\ny'; END"),
            "CREATE TRIGGER t AFTER UPDATE ON note WHEN crsql_internal_sync_bit() = 0 BEGIN UPDATE note SET at = 'x\ny'; END"
        );
        assert_eq!(
            rewritten("CREATE TRIGGER t DELETE ON note FOR EACH ROW WHEN OLD.a OR OLD.begin BEGIN DELETE FROM a; END"),
            "CREATE TRIGGER t DELETE ON note FOR EACH ROW WHEN crsql_internal_sync_bit() = 0 AND (OLD.a OR OLD.begin) \
             BEGIN DELETE FROM a; END"
        );
        assert_eq!(
            rewritten("CREATE TRIGGER main.t INSERT ON \"main\" . note FOR EACH ROW BEGIN DELETE FROM a; END"),
            "CREATE TRIGGER main.t INSERT ON \"main\" . note FOR EACH ROW WHEN crsql_internal_sync_bit() = 0 \
             BEGIN DELETE FROM a; END"
        );
    }
}
