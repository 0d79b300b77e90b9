//! A value that is replaced while others look at it: limits that an operator changes with SIGHUP.
//!
//! Who looks gets a reference that is good for as long as it wants: each of its steps may see another value, none sees half of
//! one. For that no value is ever freed once another took its place: it is one that an operator wrote, one that comes again is the
//! same as before, and who replaces bounds how many there are (`server::reload`).

use std::{
    ops::Deref,
    sync::{PoisonError, RwLock},
};

/// Looked at like the value itself.
#[derive(Debug)]
pub struct Live<T: 'static> {
    first: T,
    later: RwLock<Later<T>>,
}

#[derive(Debug)]
struct Later<T: 'static> {
    /// None: the first.
    current: Option<&'static T>,
    all: Vec<&'static T>,
}

impl<T: PartialEq> Live<T> {
    pub const fn new(value: T) -> Self {
        Self { first: value, later: RwLock::new(Later { current: None, all: Vec::new() }) }
    }

    /// From now on it is `value`. Each different one takes its memory for good.
    pub fn replace(&self, value: T) {
        let mut later = self.later.write().unwrap_or_else(PoisonError::into_inner);
        if value == self.first {
            later.current = None;
        } else if let Some(known) = later.all.iter().find(|known| ***known == value).copied() {
            later.current = Some(known);
        } else {
            let kept: &'static T = Box::leak(Box::new(value));
            later.all.push(kept);
            later.current = Some(kept);
        }
    }
}

impl<T> Deref for Live<T> {
    type Target = T;

    fn deref(&self) -> &T {
        let later = self.later.read().unwrap_or_else(PoisonError::into_inner);
        later.current.unwrap_or(&self.first)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn who_looks_keeps_what_it_saw_and_one_that_comes_again_takes_no_memory() {
        let live = Live::new(vec![1]);
        let seen: &Vec<i32> = &live;
        live.replace(vec![2]);
        assert_eq!((seen.as_slice(), live.as_slice()), (&[1][..], &[2][..]));
        for _ in 0..10 {
            live.replace(vec![1]);
            assert_eq!(live[0], 1);
            live.replace(vec![2]);
            assert_eq!(live[0], 2);
        }
        live.replace(vec![3]);
        assert_eq!((live.later.read().unwrap().all.len(), live[0], seen[0]), (2, 3, 1));
    }
}
