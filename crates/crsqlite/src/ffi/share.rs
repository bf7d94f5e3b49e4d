//! Getting at the data of the functions that are registered on a connection, which are the only way to it.
//!
//! A function is called with a pointer that SQL can neither make nor read, to a place for the answer.

use std::any::Any;
use std::ffi::{CStr, c_void};
use std::rc::Rc;
use std::sync::atomic::AtomicU8;

use rusqlite::ffi;

use super::{Args, Db, Stmt};
use crate::error::Result;

/// What SQLite calls the pointer.
const KIND: &CStr = c"crsqlite request";

/// Its address tells this copy of the library from another one, loaded into the same process, whose data are not ours.
static THIS_COPY: AtomicU8 = AtomicU8::new(0);

/// A place for an answer. What comes first must stay so in all versions.
#[repr(C)]
struct Request {
    copy: *const AtomicU8,
    answer: Option<Rc<dyn Any>>,
}

impl Db {
    /// What the function `name` gives by [`Args::share`]; none if it is another library's.
    ///
    /// # Errors
    /// There is no such function.
    pub(crate) fn shared<T: 'static>(self, name: &str) -> Result<Option<Rc<T>>> {
        let mut stmt = Stmt::prepare(self, &format!("SELECT {name}(?1)"))?;
        let mut request = Request { copy: &raw const THIS_COPY, answer: None };
        let place = (&raw mut request).cast::<c_void>();
        // SAFETY: a live statement. The place outlives it: the statement is dropped before `request`.
        let code = unsafe { ffi::sqlite3_bind_pointer(stmt.raw(), 1, place, KIND.as_ptr(), None) };
        if code != ffi::SQLITE_OK {
            return Err(self.last_error(code));
        }
        stmt.step()?;
        drop(stmt);
        Ok(request.answer.and_then(|answer| answer.downcast().ok()))
    }
}

impl Args<'_> {
    /// Answers who called the function by [`Db::shared`]; does nothing if the `i`th argument is anything else.
    pub(crate) fn share(self, i: usize, value: Option<Rc<dyn Any>>) {
        let Some(&argument) = self.0.get(i) else { return };
        // SAFETY: a live protected value. SQLite gives the pointer only if it was bound as of this kind.
        let place = unsafe { ffi::sqlite3_value_pointer(argument, KIND.as_ptr()) }.cast::<Request>();
        if place.is_null() {
            return;
        }
        // SAFETY: whatever version of this library bound it, the place begins with the address. Only if that is ours is
        // the rest of it known to be what it is here; who lent it waits for this call and looks at nothing meanwhile.
        unsafe {
            if std::ptr::eq((*place).copy, &raw const THIS_COPY) {
                (*place).answer = value;
            }
        }
    }
}
