//! Reading what others send takes time that grows with its size, not with the square of it: each list of every struct of the
//! wire, of elements that are alike and of elements that differ.

use std::collections::BTreeMap;

use crate::samples::{
    self, Sample,
    describe::{Node, encode_json},
};

#[path = "../support/growth.rs"]
mod measure;
use measure::{TIMES, grows_with};

/// Bytes of the long lists, or more where elements are large: each is bounded by the wire, and what is long enough to show a
/// square is enough.
const BYTES: usize = 32 * 1024;

#[test]
fn lists_of_the_wire_are_read_in_time_that_grows_with_their_length() {
    let samples = samples::all();
    let mut by_field: BTreeMap<&'static str, Node> = BTreeMap::new();
    for sample in &samples {
        for place in lists_in(&sample.node) {
            let one = elements(&mut sample.node.clone(), &place).first().cloned();
            let (_, field) = named(&sample.node, &place);
            if let Some(one) = one {
                by_field.entry(field).or_insert(one);
            }
        }
    }
    let mut lists: BTreeMap<(String, &'static str), bool> = BTreeMap::new();
    let mut worst = (0.0, String::new());
    let mut read = 0;
    for sample in &samples {
        for place in lists_in(&sample.node) {
            let name = named(&sample.node, &place);
            let own = elements(&mut sample.node.clone(), &place).first().cloned();
            let one = own.or_else(|| by_field.get(name.1).cloned());
            *lists.entry(name.clone()).or_default() |= one.is_some();
            let Some(one) = one else { continue };
            for differ in [false, true] {
                let list = List { sample, place: &place, one: &one, differ };
                let Some((long, is_taken)) = list.longest() else { continue };
                let what = format!("{}, {name:?}, elements differ: {differ}", sample.name);
                let longer = grows_with(&what, long / TIMES, |n| {
                    let bytes = list.of(n);
                    move || drop((sample.read)(&bytes))
                });
                read += usize::from(is_taken);
                if longer > worst.0 {
                    worst = (longer, what);
                }
            }
        }
    }
    let untried: Vec<_> =
        lists.iter().filter(|(_, tried)| !**tried).map(|(name, _)| name).collect();
    assert!(untried.is_empty(), "no sample has an element in {untried:?}");
    println!("{} lists; of {TIMES} times as much at most {worst:?} times the time", lists.len());
    assert!(read >= lists.len(), "of {} lists {read} long ones were taken", lists.len());
}

/// Where a tree has a list: the index of each field, element or content on the way there.
fn lists_in(node: &Node) -> Vec<Vec<usize>> {
    let below = |inner: &[&Node]| {
        let all = inner.iter().enumerate();
        all.flat_map(|(at, node)| {
            lists_in(node).into_iter().map(move |mut place| {
                place.insert(0, at);
                place
            })
        })
        .collect::<Vec<_>>()
    };
    match node {
        Node::Struct(_, fields) => below(&fields.iter().map(|(_, node)| node).collect::<Vec<_>>()),
        Node::Optional(Some(inner)) => below(&[&**inner]),
        Node::Vector(all) => {
            let mut found = below(&all.iter().take(1).collect::<Vec<_>>());
            found.push(Vec::new());
            found
        }
        _ => Vec::new(),
    }
}

fn inner(node: &mut Node, at: usize) -> &mut Node {
    match node {
        Node::Struct(_, fields) => &mut fields[at].1,
        Node::Optional(Some(inner)) => inner,
        Node::Vector(all) => &mut all[at],
        other => panic!("nothing is in {other:?}"),
    }
}

fn elements<'a>(node: &'a mut Node, place: &[usize]) -> &'a mut Vec<Node> {
    match place.iter().fold(node, |node, at| inner(node, *at)) {
        Node::Vector(all) => all,
        other => panic!("{other:?} is no list"),
    }
}

/// The struct and the field that hold the list.
fn named(node: &Node, place: &[usize]) -> (String, &'static str) {
    let mut node = node.clone();
    let mut name = (String::new(), "");
    for at in place {
        if let Node::Struct(kind, fields) = &node {
            name = (kind.clone(), fields[*at].0);
        }
        node = inner(&mut node, *at).clone();
    }
    name
}

/// A list in a sample.
struct List<'a> {
    sample: &'a Sample,
    place: &'a [usize],
    /// What it is filled with.
    one: &'a Node,
    differ: bool,
}

impl List<'_> {
    /// The sample with `n` elements in this list.
    fn of(&self, n: usize) -> Vec<u8> {
        let mut node = self.sample.node.clone();
        let element = |at| if self.differ { another(self.one, at) } else { self.one.clone() };
        *elements(&mut node, self.place) = (0..n).map(element).collect();
        encode_json(&node.to_json())
    }

    /// How long it can be, if that is long enough to tell; and whether one of that length is taken.
    fn longest(&self) -> Option<(usize, bool)> {
        let element = self.of(1).len() - self.of(0).len();
        let mut long = (BYTES / element).max(2 * TIMES) / TIMES * TIMES;
        while long >= 2 * TIMES {
            match (self.sample.read)(&self.of(long)) {
                Err(error) if error.to_string().contains("are allowed") => {
                    long = long / 2 / TIMES * TIMES
                }
                answer => return Some((long, answer.is_ok())),
            }
        }
        None
    }
}

/// As `node`, but with numbers and bytes of its own, as far as these may be anything.
fn another(node: &Node, index: usize) -> Node {
    let number = index as u64;
    let marked = |bytes: &[u8]| {
        let mut bytes = bytes.to_vec();
        let marks = number.to_be_bytes();
        let from = bytes.len().saturating_sub(marks.len());
        let own = bytes.len() - from;
        bytes[from..].copy_from_slice(&marks[marks.len() - own..]);
        bytes
    };
    match node {
        Node::Uint32(value) => Node::Uint32(value.wrapping_add(number as u32)),
        Node::Uint64(value) => Node::Uint64(value.wrapping_add(number)),
        Node::Uint16(value) => Node::Uint16(value.wrapping_add(number as u16)),
        Node::Fixed(bytes) => Node::Fixed(marked(bytes)),
        Node::Opaque(bytes) => Node::Opaque(marked(bytes)),
        Node::Short(bytes) => Node::Short(marked(bytes)),
        Node::Optional(Some(inner)) => Node::Optional(Some(Box::new(another(inner, index)))),
        Node::Vector(all) => Node::Vector(all.iter().map(|one| another(one, index)).collect()),
        Node::Struct(name, fields) => Node::Struct(
            name.clone(),
            fields.iter().map(|(name, node)| (*name, another(node, index))).collect(),
        ),
        Node::Uint8(_) | Node::Text(_) | Node::Code(..) | Node::Mls(..) | Node::Optional(None) => {
            node.clone()
        }
    }
}
