//! Keys between keys.
//!
//! A key is an integer part and a fraction, in digits from blank (0) to `~` (94), so that keys sort
//! bytewise. The first character says how long the integer part is, itself included: `a`..`z` for
//! 2..27 characters, `Z` down to `A` for 2..27 characters of numbers below zero. A fraction never
//! ends in a blank.

const ZERO: u8 = b' ';
const LAST: u8 = b'~';
const BASE: u8 = LAST - ZERO + 1;

/// Why there is no key between two keys.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub(super) enum KeyError {
    #[error("Key is too small")]
    TooSmall,
    #[error("Fractional part should not end with ' ' (space)")]
    TrailingBlank,
    #[error("head is out of range")]
    Head,
    #[error("integer part of key is too long")]
    IntegerTooLong,
    #[error("key_between - a must be before b")]
    Order,
    #[error("cannot decrement anymore")]
    NoDecrement,
    #[error("Cannot increment anymore")]
    NoIncrement,
    #[error("invalid digit")]
    Digit,
    #[error("midpoint - a must be before b")]
    MidpointOrder,
}

/// The smallest integer part there is; it is no key by itself.
fn is_smallest(integer: &[u8]) -> bool {
    integer.first() == Some(&b'A') && integer[1..].iter().all(|d| *d == ZERO)
}

/// A key strictly between `a` and `b`; none means the open end.
pub(super) fn between(a: Option<&str>, b: Option<&str>) -> Result<String, KeyError> {
    let a = a.map(|key| split(key.as_bytes())).transpose()?;
    let b = b.map(|key| split(key.as_bytes())).transpose()?;
    let key = match (a, b) {
        (None, None) => b"a ".to_vec(),
        (None, Some((integer, fraction))) => {
            if is_smallest(integer) {
                [integer, &middle(b"", Some(fraction))?].concat()
            } else if !fraction.is_empty() {
                integer.to_vec()
            } else {
                decrement(integer).ok_or(KeyError::NoDecrement)?
            }
        }
        (Some((integer, fraction)), None) => match increment(integer) {
            Some(next) => next,
            None => [integer, &middle(fraction, None)?].concat(),
        },
        (Some((integer, fraction)), Some(end)) => {
            let (end_integer, end_fraction) = end;
            if (integer, fraction) >= end {
                return Err(KeyError::Order);
            }
            if integer == end_integer {
                [integer, &middle(fraction, Some(end_fraction))?].concat()
            } else {
                let next = increment(integer).ok_or(KeyError::NoIncrement)?;
                if (next.as_slice(), &b""[..]) < end { next } else { [integer, &middle(fraction, None)?].concat() }
            }
        }
    };
    String::from_utf8(key).map_err(|_| KeyError::Digit)
}

/// Integer part and fraction of a valid key.
fn split(key: &[u8]) -> Result<(&[u8], &[u8]), KeyError> {
    let length = match key.first() {
        Some(head @ b'a'..=b'z') => usize::from(head - b'a') + 2,
        Some(head @ b'A'..=b'Z') => usize::from(b'Z' - head) + 2,
        _ => return Err(KeyError::Head),
    };
    let (integer, fraction) = key.split_at_checked(length).ok_or(KeyError::IntegerTooLong)?;
    if !key.iter().all(|d| (ZERO..=LAST).contains(d)) {
        return Err(KeyError::Digit);
    }
    if fraction.last() == Some(&ZERO) {
        return Err(KeyError::TrailingBlank);
    }
    if fraction.is_empty() && is_smallest(integer) {
        return Err(KeyError::TooSmall);
    }
    Ok((integer, fraction))
}

fn increment(integer: &[u8]) -> Option<Vec<u8>> {
    let mut next = integer.to_vec();
    let (head, digits) = next.split_first_mut()?;
    for digit in digits.iter_mut().rev() {
        if *digit < LAST {
            *digit += 1;
            return Some(next);
        }
        *digit = ZERO;
    }
    match *head {
        b'Z' => return Some(b"a ".to_vec()),
        b'z' => return None,
        _ => *head += 1,
    }
    if next[0] > b'a' {
        next.push(ZERO);
    } else {
        next.pop();
    }
    Some(next)
}

fn decrement(integer: &[u8]) -> Option<Vec<u8>> {
    let mut next = integer.to_vec();
    let (head, digits) = next.split_first_mut()?;
    for digit in digits.iter_mut().rev() {
        if *digit > ZERO {
            *digit -= 1;
            return Some(next);
        }
        *digit = LAST;
    }
    match *head {
        b'a' => return Some(b"Z~".to_vec()),
        b'A' => return None,
        _ => *head -= 1,
    }
    if next[0] < b'Z' {
        next.push(LAST);
    } else {
        next.pop();
    }
    Some(next)
}

/// A fraction between the fractions `x` and `y` (none: one), `x < y`.
fn middle(x: &[u8], y: Option<&[u8]>) -> Result<Vec<u8>, KeyError> {
    let (mut x, mut y, mut out) = (x, y, Vec::new());
    loop {
        if let Some(end) = y {
            let common = end.iter().enumerate().take_while(|(i, d)| x.get(*i).unwrap_or(&ZERO) == *d).count();
            if common == end.len() {
                return Err(KeyError::MidpointOrder);
            }
            out.extend_from_slice(&end[..common]);
            x = x.get(common..).unwrap_or_default();
            y = Some(&end[common..]);
        }
        let low = x.first().map_or(0, |d| d - ZERO);
        let high = y.and_then(<[u8]>::first).map_or(BASE, |d| d - ZERO);
        if high < low {
            return Err(KeyError::MidpointOrder);
        }
        if high - low > 1 {
            out.push(ZERO + (low + high).div_ceil(2));
            return Ok(out);
        }
        if let Some([first, _, ..]) = y {
            out.push(*first);
            return Ok(out);
        }
        out.push(ZERO + low);
        x = x.get(1..).unwrap_or_default();
        y = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn keys_between() {
        let z = format!("z{}", "~".repeat(26));
        let zp = format!("{z}P");
        let table: &[(Option<&str>, Option<&str>, &str)] = &[
            (None, None, "a "),
            (None, Some("a "), "Z~"),
            (Some("a "), None, "a!"),
            (Some("a~"), None, "b  "),
            (None, Some("Y  "), "X~~~"),
            (Some("a0"), Some("a1"), "a0P"),
            (Some("a0V"), Some("a1"), "a0k"),
            (Some("Z~"), Some("a "), "Z~P"),
            (Some("Z~"), Some("a!"), "a "),
            (Some("a0"), Some("a1V"), "a1"),
            (None, Some("a0V"), "a0"),
            (Some("b125"), Some("b129"), "b127"),
            (Some("a "), Some("a !"), "a  P"),
            (Some(&z), None, &zp),
        ];
        for (a, b, expected) in table {
            assert_eq!(between(*a, *b).unwrap(), *expected, "{a:?} {b:?}");
        }
    }

    #[test]
    fn repeated_halving() {
        let mut key = "a!".to_owned();
        for expected in ["a P", "a 8", "a ,", "a &", "a #", "a \"", "a !", "a  P"] {
            key = between(Some("a "), Some(&key)).unwrap();
            assert_eq!(key, expected);
        }
        let mut key = "a ".to_owned();
        for expected in ["a P", "a h", "a t", "a z", "a }", "a ~", "a ~P"] {
            key = between(Some(&key), Some("a!")).unwrap();
            assert_eq!(key, expected);
        }
    }

    #[test]
    fn refused_keys() {
        let smallest = format!("A{}", " ".repeat(26));
        let table: &[(Option<&str>, Option<&str>, KeyError)] = &[
            (Some("a "), Some("a "), KeyError::Order),
            (Some("a1"), Some("a0"), KeyError::Order),
            (Some(""), None, KeyError::Head),
            (None, Some("!x"), KeyError::Head),
            (Some("b1"), None, KeyError::IntegerTooLong),
            (Some("a0 "), None, KeyError::TrailingBlank),
            (None, Some(&smallest), KeyError::TooSmall),
            (Some("aé"), None, KeyError::Digit),
        ];
        for (a, b, error) in table {
            assert_eq!(between(*a, *b), Err(*error), "{a:?} {b:?}");
        }
        let above = format!("{smallest}!");
        assert_eq!(between(None, Some(&above)).unwrap(), format!("{smallest} P"));
    }

    proptest! {
        #[test]
        fn new_keys_lie_between(choices in proptest::collection::vec(any::<u16>(), 1..120)) {
            let mut keys = vec![between(None, None).unwrap()];
            for choice in choices {
                let at = usize::from(choice) % (keys.len() + 1);
                let before = at.checked_sub(1).map(|i| keys[i].as_str());
                let key = between(before, keys.get(at).map(String::as_str)).unwrap();
                keys.insert(at, key);
            }
            prop_assert!(keys.windows(2).all(|w| w[0] < w[1]), "{keys:?}");
        }

        #[test]
        fn any_text_is_a_key_or_an_error(a in ".{0,5}", b in ".{0,5}") {
            if let Ok(key) = between(Some(&a), Some(&b)) {
                prop_assert!(a < key && key < b);
            }
        }
    }
}
