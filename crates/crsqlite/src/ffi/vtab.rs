//! Virtual tables.

use std::ffi::{CStr, c_char, c_int, c_void};
use std::marker::PhantomData;
use std::rc::Rc;

use rusqlite::ffi::{self, sqlite3, sqlite3_context, sqlite3_module, sqlite3_value};
use rusqlite::ffi::{sqlite3_index_info, sqlite3_vtab, sqlite3_vtab_cursor};
use rusqlite::types::ValueRef;

use super::function::{Context, destroy};
use super::{Args, Db, c_string, guarded};
use crate::error::{Error, Result};

/// What kind of virtual table a module makes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Kind {
    /// Exists under the module's own name and cannot be created; `true` if rows can be inserted.
    Eponymous { writable: bool },
    /// Made by CREATE VIRTUAL TABLE.
    Created,
}

/// A virtual table.
pub(crate) trait Table: Sized + 'static {
    /// What the module's registration shares with its tables.
    type Shared: 'static;
    /// A scan of the table.
    type Cursor: Cursor;
    /// How tables come to be.
    const KIND: Kind;

    /// Opens the table, makes it first if `create`; also returns the CREATE TABLE text that
    /// declares its columns. `args` are the module's name, the schema's name, the table's name and
    /// the module's arguments.
    fn connect(shared: &Rc<Self::Shared>, args: &[String], create: bool) -> Result<(Self, &'static str)>;

    /// Chooses how a scan will run.
    fn best_index(&self, plan: &mut Plan<'_>) -> Result<()>;

    /// Starts a scan.
    fn open(&self) -> Result<Self::Cursor>;

    /// Inserts a row, given its columns; returns its rowid.
    fn insert(&self, _row: Args<'_>) -> Result<i64> {
        Err(Error::misuse("this table cannot be written"))
    }

    /// The error of UPDATE and DELETE.
    fn refuse_change(&self) -> Error {
        Error::misuse("this table cannot be written")
    }

    /// The first write to the table in a transaction. Savepoints that are open already are not announced.
    fn begin(&self) -> Result<()> {
        Ok(())
    }

    /// The transaction was committed.
    fn committed(&self) {}

    /// The transaction was rolled back.
    fn rolled_back(&self) {}

    /// Savepoint `n` begins.
    fn savepoint(&self, _n: i32) -> Result<()> {
        Ok(())
    }

    /// The state goes back to where savepoint `n` began.
    fn rollback_to(&self, _n: i32) -> Result<()> {
        Ok(())
    }

    /// DROP TABLE.
    fn drop_table(&self) -> Result<()> {
        Ok(())
    }
}

/// A scan of a virtual table.
pub(crate) trait Cursor {
    /// Starts over with what `best_index` chose.
    fn filter(&mut self, number: i32, text: &str, args: Args<'_>) -> Result<()>;
    /// Moves on.
    fn next(&mut self) -> Result<()>;
    /// Whether the scan is past its end.
    fn at_end(&self) -> bool;
    /// Puts column `i` of the current row into `out`.
    fn column(&mut self, i: usize, out: Context) -> Result<()>;
    /// The current row's id.
    fn rowid(&self) -> i64;
}

/// Operators of constraints that the engine's tables look at.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Operator {
    Equal,
    Greater,
    GreaterEqual,
    Less,
    LessEqual,
    NotEqual,
    Is,
    IsNot,
    Other,
}

/// One usable constraint of a query: `column operator argument`.
#[derive(Clone, Copy)]
pub(crate) struct Constraint {
    pub(crate) index: usize,
    pub(crate) column: i32,
    pub(crate) operator: Operator,
    pub(crate) usable: bool,
}

/// A query that wants to be planned.
pub(crate) struct Plan<'a> {
    info: &'a mut sqlite3_index_info,
}

impl Plan<'_> {
    /// The query's constraints.
    pub(crate) fn constraints(&self) -> Vec<Constraint> {
        let n = usize::try_from(self.info.nConstraint).unwrap_or(0);
        if n == 0 {
            return Vec::new();
        }
        // SAFETY: SQLite gives `nConstraint` constraints, valid during xBestIndex.
        let constraints = unsafe { std::slice::from_raw_parts(self.info.aConstraint, n) };
        let constraint = |(index, c): (usize, &ffi::sqlite3_index_constraint)| Constraint {
            index,
            column: c.iColumn,
            operator: match c_int::from(c.op) {
                ffi::SQLITE_INDEX_CONSTRAINT_EQ => Operator::Equal,
                ffi::SQLITE_INDEX_CONSTRAINT_GT => Operator::Greater,
                ffi::SQLITE_INDEX_CONSTRAINT_GE => Operator::GreaterEqual,
                ffi::SQLITE_INDEX_CONSTRAINT_LT => Operator::Less,
                ffi::SQLITE_INDEX_CONSTRAINT_LE => Operator::LessEqual,
                ffi::SQLITE_INDEX_CONSTRAINT_NE => Operator::NotEqual,
                ffi::SQLITE_INDEX_CONSTRAINT_IS => Operator::Is,
                ffi::SQLITE_INDEX_CONSTRAINT_ISNOT => Operator::IsNot,
                _ => Operator::Other,
            },
            usable: c.usable != 0,
        };
        constraints.iter().enumerate().map(constraint).collect()
    }

    /// Asks for the constraint's right side as argument `position` (from 1) of the filter.
    /// With `omit` SQLite does not check the constraint itself.
    pub(crate) fn pass(&mut self, constraint: Constraint, position: usize, omit: bool) {
        // SAFETY: as many usages as constraints; the index comes from `constraints`.
        let usage = unsafe { &mut *self.info.aConstraintUsage.add(constraint.index) };
        usage.argvIndex = c_int::try_from(position).unwrap_or(0);
        usage.omit = u8::from(omit);
    }

    /// The wanted order: column and whether descending.
    pub(crate) fn order_by(&self) -> Vec<(i32, bool)> {
        let n = usize::try_from(self.info.nOrderBy).unwrap_or(0);
        if n == 0 {
            return Vec::new();
        }
        // SAFETY: SQLite gives `nOrderBy` terms, valid during xBestIndex.
        let terms = unsafe { std::slice::from_raw_parts(self.info.aOrderBy, n) };
        terms.iter().map(|t| (t.iColumn, t.desc != 0)).collect()
    }

    /// Whether the scan yields the wanted order by itself.
    pub(crate) fn set_ordered(&mut self, ordered: bool) {
        self.info.orderByConsumed = c_int::from(ordered);
    }

    /// The plan as the filter will get it.
    pub(crate) fn choose(&mut self, number: i32, text: &str, cost: f64, rows: i64) -> Result<()> {
        self.info.idxNum = number;
        self.info.idxStr = sqlite_string(text)?;
        self.info.needToFreeIdxStr = 1;
        self.info.estimatedCost = cost;
        self.info.estimatedRows = rows;
        Ok(())
    }
}

/// A copy of `text` that SQLite frees.
fn sqlite_string(text: &str) -> Result<*mut c_char> {
    let text = c_string(text)?;
    let bytes = text.as_bytes_with_nul();
    // SAFETY: the new memory is as long as what is copied there.
    unsafe {
        let copy = ffi::sqlite3_malloc64(bytes.len() as u64).cast::<u8>();
        if copy.is_null() {
            return Err(Error::Sqlite { code: ffi::SQLITE_NOMEM, message: "out of memory".into() });
        }
        std::ptr::copy_nonoverlapping(bytes.as_ptr(), copy, bytes.len());
        Ok(copy.cast::<c_char>())
    }
}

#[repr(C)]
struct RawTable<T> {
    base: sqlite3_vtab,
    table: T,
}

#[repr(C)]
struct RawCursor<C> {
    base: sqlite3_vtab_cursor,
    cursor: C,
}

struct Data<S> {
    shared: Rc<S>,
}

struct Module<T>(PhantomData<T>);

impl<T: Table> Module<T> {
    const RAW: sqlite3_module = {
        // SAFETY: all fields are integers or optional function pointers; zero means absent. (Newer
        // SQLite headers have fields that older ones lack, hence no literal of all fields.)
        let mut module: sqlite3_module = unsafe { std::mem::zeroed() };
        module.iVersion = 2;
        module.xConnect = Some(connect::<T>);
        module.xBestIndex = Some(best_index::<T>);
        module.xDisconnect = Some(disconnect::<T>);
        module.xDestroy = Some(disconnect::<T>);
        module.xOpen = Some(open::<T>);
        module.xClose = Some(close::<T>);
        module.xFilter = Some(filter::<T>);
        module.xNext = Some(next::<T>);
        module.xEof = Some(at_end::<T>);
        module.xColumn = Some(column::<T>);
        module.xRowid = Some(rowid::<T>);
        match T::KIND {
            Kind::Eponymous { writable: false } => {}
            Kind::Eponymous { writable: true } => {
                module.xUpdate = Some(update::<T>);
                module.xBegin = Some(begin::<T>);
                module.xCommit = Some(committed::<T>);
                module.xRollback = Some(rolled_back::<T>);
                module.xSavepoint = Some(savepoint::<T>);
                module.xRollbackTo = Some(rollback_to::<T>);
            }
            Kind::Created => {
                module.xCreate = Some(create::<T>);
                module.xDestroy = Some(destroy_table::<T>);
            }
        }
        module
    };
    const REF: &'static sqlite3_module = &Self::RAW;
}

impl Db {
    /// Registers the module of `T`; `shared` lives until the connection is closed.
    pub(crate) fn create_module<T: Table>(self, name: &str, shared: &Rc<T::Shared>) -> Result<()> {
        let name = c_string(name)?;
        let data = Box::new(Data { shared: Rc::clone(shared) });
        // SAFETY: the module is static; the data is handed over to SQLite, which destroys it by
        // `destroy` when the module goes, or when this call fails.
        let code = unsafe {
            ffi::sqlite3_create_module_v2(
                self.0,
                name.as_ptr(),
                Module::<T>::REF,
                Box::into_raw(data).cast::<c_void>(),
                Some(destroy::<Data<T::Shared>>),
            )
        };
        if code == ffi::SQLITE_OK { Ok(()) } else { Err(self.last_error(code)) }
    }
}

/// Gives the error's message to the table and its code to SQLite.
///
/// # Safety
/// `table` is a live virtual table.
unsafe fn fail(table: *mut sqlite3_vtab, error: &Error) -> c_int {
    // SAFETY: promised by the caller; an earlier message is SQLite's memory or null.
    unsafe {
        ffi::sqlite3_free((*table).zErrMsg.cast::<c_void>());
        (*table).zErrMsg = sqlite_string(&error.to_string()).unwrap_or(std::ptr::null_mut());
    }
    error.code()
}

/// # Safety
/// As SQLite calls xCreate and xConnect.
unsafe fn make<T: Table>(
    db: *mut sqlite3,
    aux: *mut c_void,
    argc: c_int,
    argv: *const *const c_char,
    out: *mut *mut sqlite3_vtab,
    message: *mut *mut c_char,
    create: bool,
) -> c_int {
    // SAFETY: `aux` is what `create_module` gave; SQLite passes `argc` terminated strings.
    let (data, args) = unsafe {
        let args = (0..usize::try_from(argc).unwrap_or(0))
            .map(|i| CStr::from_ptr(*argv.add(i)).to_string_lossy().into_owned())
            .collect::<Vec<_>>();
        (&*aux.cast::<Data<T::Shared>>(), args)
    };
    let made = guarded(|| {
        let (table, declaration) = T::connect(&data.shared, &args, create)?;
        let declaration = c_string(declaration)?;
        // SAFETY: called inside xCreate or xConnect, as it must be.
        match unsafe { ffi::sqlite3_declare_vtab(db, declaration.as_ptr()) } {
            ffi::SQLITE_OK => Ok(table),
            code => Err(Db(db).last_error(code)),
        }
    });
    match made {
        Ok(table) => {
            let raw = Box::new(RawTable { base: sqlite3_vtab::default(), table });
            // SAFETY: the place for the result; `base` is the first field of a repr(C) struct.
            unsafe { *out = Box::into_raw(raw).cast::<sqlite3_vtab>() };
            ffi::SQLITE_OK
        }
        Err(error) => {
            let text = error.to_string();
            if !text.is_empty() {
                // SAFETY: the place for the message, which SQLite frees.
                unsafe { *message = sqlite_string(&text).unwrap_or(std::ptr::null_mut()) };
            }
            error.code()
        }
    }
}

unsafe extern "C" fn create<T: Table>(
    db: *mut sqlite3,
    aux: *mut c_void,
    argc: c_int,
    argv: *const *const c_char,
    out: *mut *mut sqlite3_vtab,
    message: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as it came.
    unsafe { make::<T>(db, aux, argc, argv, out, message, true) }
}

unsafe extern "C" fn connect<T: Table>(
    db: *mut sqlite3,
    aux: *mut c_void,
    argc: c_int,
    argv: *const *const c_char,
    out: *mut *mut sqlite3_vtab,
    message: *mut *mut c_char,
) -> c_int {
    // SAFETY: passed on as it came.
    unsafe { make::<T>(db, aux, argc, argv, out, message, false) }
}

/// # Safety
/// `table` was made by `make::<T>` and lives for `'a`.
unsafe fn table_of<'a, T: Table>(table: *mut sqlite3_vtab) -> &'a T {
    // SAFETY: promised by the caller.
    unsafe { &(*table.cast::<RawTable<T>>()).table }
}

unsafe extern "C" fn disconnect<T: Table>(table: *mut sqlite3_vtab) -> c_int {
    // SAFETY: made by `make`, destroyed once.
    drop(unsafe { Box::from_raw(table.cast::<RawTable<T>>()) });
    ffi::SQLITE_OK
}

/// Runs `body` on the table; on error the table gets the message.
///
/// # Safety
/// `table` is a live virtual table made by `make::<T>`.
unsafe fn with_table<T: Table>(table: *mut sqlite3_vtab, body: impl FnOnce(&T) -> Result<()>) -> c_int {
    // SAFETY: promised by the caller.
    unsafe {
        match guarded(|| body(table_of::<T>(table))) {
            Ok(()) => ffi::SQLITE_OK,
            Err(error) => fail(table, &error),
        }
    }
}

unsafe extern "C" fn destroy_table<T: Table>(table: *mut sqlite3_vtab) -> c_int {
    // SAFETY: made by `make`; destroyed once, and only if its DROP succeeded.
    unsafe {
        match with_table::<T>(table, Table::drop_table) {
            ffi::SQLITE_OK => disconnect::<T>(table),
            code => code,
        }
    }
}

unsafe extern "C" fn best_index<T: Table>(table: *mut sqlite3_vtab, info: *mut sqlite3_index_info) -> c_int {
    // SAFETY: SQLite passes a live table and query.
    unsafe { with_table::<T>(table, |t| t.best_index(&mut Plan { info: &mut *info })) }
}

unsafe extern "C" fn open<T: Table>(table: *mut sqlite3_vtab, out: *mut *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: a live table and a place for the cursor, whose `base` comes first (repr(C)).
    unsafe {
        with_table::<T>(table, |t| {
            let raw = Box::new(RawCursor { base: sqlite3_vtab_cursor::default(), cursor: t.open()? });
            *out = Box::into_raw(raw).cast::<sqlite3_vtab_cursor>();
            Ok(())
        })
    }
}

/// Runs `body` on the cursor; on error the table gets the message.
///
/// # Safety
/// `cursor` was made by `open::<T>` and nobody else uses it now.
unsafe fn with_cursor<T: Table>(
    cursor: *mut sqlite3_vtab_cursor,
    body: impl FnOnce(&mut T::Cursor) -> Result<()>,
) -> c_int {
    // SAFETY: promised by the caller; SQLite keeps the table while it has cursors.
    unsafe {
        let raw = &mut *cursor.cast::<RawCursor<T::Cursor>>();
        match guarded(|| body(&mut raw.cursor)) {
            Ok(()) => ffi::SQLITE_OK,
            Err(error) => fail(raw.base.pVtab, &error),
        }
    }
}

unsafe extern "C" fn close<T: Table>(cursor: *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: made by `open`, closed once.
    drop(unsafe { Box::from_raw(cursor.cast::<RawCursor<T::Cursor>>()) });
    ffi::SQLITE_OK
}

unsafe extern "C" fn filter<T: Table>(
    cursor: *mut sqlite3_vtab_cursor,
    number: c_int,
    text: *const c_char,
    argc: c_int,
    argv: *mut *mut sqlite3_value,
) -> c_int {
    // SAFETY: SQLite passes a live cursor, the plan's text and its arguments.
    unsafe {
        let text = if text.is_null() { c"" } else { CStr::from_ptr(text) };
        let args = Args::new(argc, argv);
        let text = text.to_str().unwrap_or_default();
        with_cursor::<T>(cursor, |c| c.filter(number, text, args))
    }
}

unsafe extern "C" fn next<T: Table>(cursor: *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: a live cursor.
    unsafe { with_cursor::<T>(cursor, Cursor::next) }
}

unsafe extern "C" fn at_end<T: Table>(cursor: *mut sqlite3_vtab_cursor) -> c_int {
    // SAFETY: a live cursor.
    c_int::from(unsafe { (*cursor.cast::<RawCursor<T::Cursor>>()).cursor.at_end() })
}

unsafe extern "C" fn column<T: Table>(
    cursor: *mut sqlite3_vtab_cursor,
    context: *mut sqlite3_context,
    i: c_int,
) -> c_int {
    let out = Context(context);
    // SAFETY: a live cursor and context.
    unsafe { with_cursor::<T>(cursor, |c| c.column(usize::try_from(i).unwrap_or(usize::MAX), out)) }
}

unsafe extern "C" fn rowid<T: Table>(cursor: *mut sqlite3_vtab_cursor, out: *mut ffi::sqlite3_int64) -> c_int {
    // SAFETY: a live cursor and a place for the result.
    unsafe { *out = (*cursor.cast::<RawCursor<T::Cursor>>()).cursor.rowid() };
    ffi::SQLITE_OK
}

unsafe extern "C" fn update<T: Table>(
    table: *mut sqlite3_vtab,
    argc: c_int,
    argv: *mut *mut sqlite3_value,
    rowid: *mut ffi::sqlite3_int64,
) -> c_int {
    // SAFETY: SQLite passes a live table, the old rowid (NULL for an insert), the new one and the
    // columns; `rowid` is a place for the new row's id.
    unsafe {
        let args = Args::new(argc, argv);
        with_table::<T>(table, |t| {
            if args.len() < 2 || !matches!(args.get(0), ValueRef::Null) {
                return Err(t.refuse_change());
            }
            *rowid = t.insert(args.from(2))?;
            Ok(())
        })
    }
}

unsafe extern "C" fn begin<T: Table>(table: *mut sqlite3_vtab) -> c_int {
    // SAFETY: a live table.
    unsafe { with_table::<T>(table, Table::begin) }
}

unsafe extern "C" fn committed<T: Table>(table: *mut sqlite3_vtab) -> c_int {
    // SAFETY: a live table.
    unsafe {
        with_table::<T>(table, |t| {
            t.committed();
            Ok(())
        })
    }
}

unsafe extern "C" fn rolled_back<T: Table>(table: *mut sqlite3_vtab) -> c_int {
    // SAFETY: a live table.
    unsafe {
        with_table::<T>(table, |t| {
            t.rolled_back();
            Ok(())
        })
    }
}

unsafe extern "C" fn savepoint<T: Table>(table: *mut sqlite3_vtab, n: c_int) -> c_int {
    // SAFETY: a live table.
    unsafe { with_table::<T>(table, |t| t.savepoint(n)) }
}

unsafe extern "C" fn rollback_to<T: Table>(table: *mut sqlite3_vtab, n: c_int) -> c_int {
    // SAFETY: a live table.
    unsafe { with_table::<T>(table, |t| t.rollback_to(n)) }
}
