//! Tables as people make them, by chance: what all sites agree about, and what each has of its own around it: names in
//! another case, constraints, generated columns, indexes and triggers, some of which refuse rows that others have.

use std::fmt::Write;

use crate::world::World;

/// What the guards of some sites refuse, and applications write now and then.
pub(crate) const REFUSED: &str = "evil";

/// A table that replicates: names but for their case, types and defaults are the same at all sites.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Table {
    pub(crate) name: String,
    pub(crate) keys: Vec<Column>,
    pub(crate) columns: Vec<Column>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Column {
    pub(crate) name: &'static str,
    pub(crate) kind: Kind,
}

/// What is mostly in a column.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Integer,
    Real,
    Text,
    Blob,
    Json,
    Any,
}

/// How one site declares a table.
#[derive(Clone, Debug, Default)]
pub(crate) struct Declaration {
    /// All of its statements.
    pub(crate) sql: String,
    /// Whether its applications must not write [`REFUSED`]: a trigger of theirs has SQLite leave out all other triggers
    /// then, those that record the write too.
    pub(crate) avoids_refused: bool,
}

impl Kind {
    fn declared(self, is_strict: bool) -> &'static str {
        match self {
            Self::Integer => "INTEGER",
            Self::Real => "REAL",
            Self::Text | Self::Json => "TEXT",
            Self::Blob => "BLOB",
            // Outside of strict tables, `ANY` makes numbers of what looks like one.
            Self::Any if is_strict => "ANY",
            Self::Any => "",
        }
    }

    /// Never NULL, since some sites have the column NOT NULL; and no JSON where JSON belongs: a row that is made first and
    /// filled afterwards is refused in between.
    fn default(self) -> &'static str {
        match self {
            Self::Integer => "0",
            Self::Real => "(0.5 + 1)",
            Self::Text | Self::Json => "''",
            Self::Blob => "x'00'",
            Self::Any => "'none'",
        }
    }
}

impl Table {
    /// Any table.
    pub(crate) fn draw(world: &World, number: usize) -> Self {
        use Kind::{Any, Blob, Integer, Json, Real, Text};
        let column = |name, kinds: &[Kind]| Column { name, kind: kinds[world.index(kinds.len())] };
        let mut keys = vec![column("id", &[Integer, Integer, Text, Blob])];
        if world.chance(0.3) {
            keys.push(column("part", &[Integer, Text]));
        }
        let more = [
            column("low", &[Integer, Integer, Real, Any]),
            column("high", &[Integer, Integer, Real, Any]),
            column("data", &[Json, Json, Blob, Any]),
        ];
        let mut columns = vec![column("title", &[Text])];
        columns.extend(&more[..world.index(more.len() + 1)]);
        Self { name: format!("drawn{number}"), keys, columns }
    }

    /// The table as a site has it that takes everything.
    pub(crate) fn plain(&self) -> Declaration {
        let column = |column: &Column| format!("{} {}", column.name, column.kind.declared(false));
        let keys = self.keys.iter().map(|key| format!("{} NOT NULL", column(key)));
        let others = self.columns.iter().map(|c| format!("{} DEFAULT {}", column(c), c.kind.default()));
        let columns = keys.chain(others).collect::<Vec<_>>().join(", ");
        let (name, keys) = (&self.name, self.key_names().join(", "));
        let sql = format!(
            "CREATE TABLE {name} ({columns}, PRIMARY KEY ({keys}));
             SELECT crsql_as_crr('{name}');"
        );
        Declaration { sql, avoids_refused: false }
    }

    /// The table as one of many sites may have it.
    pub(crate) fn declare(&self, world: &World) -> Declaration {
        Maker::new(self, world).make()
    }

    pub(crate) fn key_names(&self) -> Vec<&'static str> {
        self.keys.iter().map(|key| key.name).collect()
    }

    /// The names of all its columns, keys first.
    pub(crate) fn names(&self) -> Vec<&'static str> {
        self.keys.iter().chain(&self.columns).map(|column| column.name).collect()
    }

    fn of(&self, kind: Kind) -> Option<&'static str> {
        self.columns.iter().find(|column| column.kind == kind).map(|column| column.name)
    }

    fn has(&self, name: &str) -> bool {
        self.columns.iter().any(|column| column.name == name)
    }

    /// Whether its only key is SQLite's own number of a row.
    fn has_integer_key(&self) -> bool {
        matches!(self.keys.as_slice(), [Column { kind: Kind::Integer, .. }])
    }
}

/// Makes one site's declaration of a table.
struct Maker<'a> {
    table: &'a Table,
    world: &'a World,
    name: String,
    is_strict: bool,
    without_rowid: bool,
    /// In the table's own statement.
    columns: Vec<String>,
    constraints: Vec<String>,
    /// Statements before and after the table begins to replicate.
    around: [String; 2],
    objects: u32,
    avoids_refused: bool,
}

impl<'a> Maker<'a> {
    fn new(table: &'a Table, world: &'a World) -> Self {
        Self {
            table,
            world,
            name: in_some_case(world, &table.name),
            is_strict: world.chance(0.15),
            without_rowid: world.chance(0.15),
            columns: Vec::new(),
            constraints: Vec::new(),
            around: [const { String::new() }; 2],
            objects: 0,
            avoids_refused: false,
        }
    }

    fn make(mut self) -> Declaration {
        let is_calm = self.world.chance(0.35);
        self.own_columns(is_calm);
        if !is_calm {
            let features: [fn(&mut Self); 6] =
                [Self::check, Self::generated, Self::index, Self::trigger, Self::full_text, Self::child];
            for _ in 0..1 + self.world.number(0..4) {
                features[self.world.index(features.len())](&mut self);
            }
        }
        let keys: Vec<_> = self.table.keys.iter().map(|key| in_some_case(self.world, key.name)).collect();
        self.constraints.push(format!("PRIMARY KEY ({})", keys.join(", ")));
        let options = [("STRICT", self.is_strict), ("WITHOUT ROWID", self.without_rowid)];
        let options: Vec<_> = options.iter().filter(|option| option.1).map(|option| option.0).collect();
        let Self { name, columns, constraints, around: [before, after], .. } = &self;
        let sql = format!(
            "CREATE TABLE {name} ({}) {};\n{before}SELECT crsql_as_crr('{}');\n{after}",
            [columns.as_slice(), constraints].concat().join(", "),
            options.join(", "),
            in_some_case(self.world, name)
        );
        Declaration { sql, avoids_refused: self.avoids_refused }
    }

    fn own_columns(&mut self, is_calm: bool) {
        for key in &self.table.keys {
            let name = in_some_case(self.world, key.name);
            self.columns.push(format!("{name} {} NOT NULL", key.kind.declared(self.is_strict)));
        }
        for column in &self.table.columns {
            let (name, kind) = (in_some_case(self.world, column.name), column.kind);
            let mut text = format!("{name} {} DEFAULT {}", kind.declared(self.is_strict), kind.default());
            if !is_calm && self.world.chance(0.15) {
                text.push_str(self.any(&[
                    " NOT NULL",
                    " NOT NULL ON CONFLICT ABORT",
                    " NOT NULL ON CONFLICT FAIL",
                    " NOT NULL ON CONFLICT ROLLBACK",
                ]));
            }
            if !is_calm && kind == Kind::Text && self.world.chance(0.3) {
                text.push_str(self.any(&[" COLLATE NOCASE", " COLLATE RTRIM", " CHECK (length(title) < 8)"]));
            }
            self.columns.push(text);
        }
    }

    /// A constraint of the table, over one column or several.
    fn check(&mut self) {
        let mut checks = vec!["CHECK (title <> 'evil')", "CONSTRAINT short CHECK (length(title) < 8)"];
        if self.table.has("high") {
            checks.extend(["CHECK (low <= high)", "CHECK ((low IS NULL) = (high IS NULL))"]);
            checks.extend(["CHECK (typeof(low) = typeof(high))", "CHECK (low IS NOT NULL OR title IS NOT NULL)"]);
        }
        if self.table.of(Kind::Json).is_some() {
            checks.extend(["CHECK (json_valid(data))", "CHECK (json_extract(data, '$.k') IS NOT title)"]);
        }
        let check = self.any(&checks).to_owned();
        self.constraints.push(check);
    }

    fn generated(&mut self) {
        let mut columns = vec!["TEXT AS (upper(title))", "INTEGER AS (coalesce(length(title), 0))"];
        if let Some("low" | "high") = self.table.of(Kind::Integer) {
            // Of the least of integers there is none.
            columns.push("INTEGER AS (abs(low))");
        }
        if self.table.of(Kind::Json).is_some() {
            columns.extend(["TEXT AS (json_extract(data, '$.k'))", "TEXT AS (coalesce(data ->> 'k', ''))"]);
        }
        let (column, stored) = (self.any(&columns).to_owned(), self.any(&["STORED", "VIRTUAL"]).to_owned());
        let number = self.number();
        self.columns.push(format!("made{number} {column} {stored}"));
    }

    fn index(&mut self) {
        let mut indexed = vec!["(title)", "(lower(title))", "(title COLLATE NOCASE) WHERE title IS NOT NULL"];
        if self.table.has("high") {
            indexed.extend(["(low, high)", "(low) WHERE high > 0", "(low + high)"]);
        }
        if self.table.of(Kind::Json).is_some() {
            indexed.extend(["(json_extract(data, '$.k'))", "(title) WHERE json_extract(data, '$.k') > 1"]);
        }
        let indexed = self.any(&indexed).to_owned();
        let (number, name) = (self.number(), self.name.clone());
        self.add(&format!("CREATE INDEX {name}_by{number} ON {name} {indexed};\n"));
    }

    /// A trigger that refuses some rows, or all, or none.
    fn trigger(&mut self) {
        let (timing, event) =
            (self.any(&["BEFORE", "AFTER"]), self.any(&["INSERT", "UPDATE", "UPDATE OF title", "DELETE"]));
        let row = if event == "DELETE" { "OLD" } else { "NEW" };
        let action = match self.world.number(0..9) {
            0..=3 => {
                let raise = self.any(&["ABORT, 'no'", "FAIL, 'no'", "ROLLBACK, 'no'", "IGNORE"]);
                if (timing, raise) == ("AFTER", "IGNORE") {
                    self.avoids_refused = true;
                }
                format!("SELECT RAISE({raise})")
            }
            4 => format!("SELECT app_thumbnail({row}.title)"),
            5 => format!("INSERT INTO gone VALUES ({row}.title)"),
            6 => format!("SELECT json_extract({row}.title, '$.k')"),
            _ => format!("INSERT INTO {}_audit VALUES ('{event}', {row}.title)", self.table.name),
        };
        let when = match self.avoids_refused {
            true => format!("WHEN {row}.title = '{REFUSED}'"),
            false => self
                .any(&["", "WHEN :.title = 'evil'", "WHEN :.title = 'evil'", "WHEN :.title IS NULL"])
                .replace(':', row),
        };
        // One that leaves out every row is no application's.
        let when =
            if when.is_empty() && action.contains("RAISE") { format!("WHEN {row}.title = '{REFUSED}'") } else { when };
        let (number, name) = (self.number(), self.name.clone());
        self.add(&format!(
            "CREATE TABLE IF NOT EXISTS {}_audit (what, title);
             CREATE TRIGGER {name}_on{number} {timing} {event} ON {name} {when} BEGIN {action}; END;\n",
            self.table.name
        ));
    }

    /// An index of all words in a virtual table that triggers keep in step.
    fn full_text(&mut self) {
        let fts = format!("{}_fts", self.table.name);
        if !self.table.has_integer_key() || self.without_rowid || self.around.iter().any(|sql| sql.contains(&fts)) {
            return;
        }
        let (add, name) = (format!("INSERT INTO {fts} (rowid, title) VALUES (NEW.id, NEW.title);"), self.name.clone());
        let remove = format!("INSERT INTO {fts} ({fts}, rowid, title) VALUES ('delete', OLD.id, OLD.title);");
        self.add(&format!(
            "CREATE VIRTUAL TABLE {fts} USING fts5 (title, content = '{name}', content_rowid = 'id');
             CREATE TRIGGER {fts}_i AFTER INSERT ON {name} BEGIN {add} END;
             CREATE TRIGGER {fts}_d AFTER DELETE ON {name} BEGIN {remove} END;
             CREATE TRIGGER {fts}_u AFTER UPDATE ON {name} BEGIN {remove} {add} END;\n"
        ));
    }

    /// A table that does not replicate and refers to this one, rightly or not.
    fn child(&mut self) {
        let column = self.any(&["title", "id"]).to_owned();
        let action = self.any(&["", "ON DELETE CASCADE", "ON DELETE RESTRICT", "ON UPDATE CASCADE"]).to_owned();
        let (number, name) = (self.number(), self.name.clone());
        self.add(&format!("CREATE TABLE {name}_child{number} (it REFERENCES {name} ({column}) {action});\n"));
    }

    /// Before the table replicates, or after that.
    fn add(&mut self, sql: &str) {
        let at = self.world.index(2);
        self.around[at].write_str(sql).expect("memory takes it");
    }

    fn any<'b>(&self, choices: &[&'b str]) -> &'b str {
        choices[self.world.index(choices.len())]
    }

    fn number(&mut self) -> u32 {
        self.objects += 1;
        self.objects
    }
}

/// A name as it is, mostly, or in another case, which is the same to SQLite.
fn in_some_case(world: &World, name: &str) -> String {
    match world.number(0..8) {
        0 => name.to_uppercase(),
        1 => name[..1].to_uppercase() + &name[1..],
        _ => name.to_owned(),
    }
}
