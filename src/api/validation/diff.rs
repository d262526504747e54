//! A unified diff of two objects as indented JSON, which update errors carry (`k8s.io/apimachinery/pkg/util/diff`).

use serde_json::Value;

/// Lines of context around a change.
const CONTEXT: usize = 3;
/// Above this many lines the diff is left out: the algorithm is quadratic.
const LIMIT: usize = 3000;

#[derive(Clone, Copy, PartialEq)]
enum Edit {
    Keep(usize, usize),
    Remove(usize, usize),
    Insert(usize, usize),
}

/// `@@ -1,3 +1,3 @@` and the lines, from `old` to `new`.
pub fn unified(old: &Value, new: &Value) -> String {
    let lines = |value: &Value| -> Vec<String> { pretty(value).lines().map(str::to_owned).collect() };
    let (old, new) = (lines(old), lines(new));
    if old.len() > LIMIT || new.len() > LIMIT {
        return String::new();
    }
    let edits = edits(&old, &new);
    let mut text = String::new();
    let changed: Vec<usize> = (0..edits.len()).filter(|i| !matches!(edits[*i], Edit::Keep(..))).collect();
    let mut rest = &changed[..];
    while let Some((first, _)) = rest.split_first() {
        let together = rest.windows(2).take_while(|pair| pair[1] - pair[0] <= 2 * CONTEXT).count() + 1;
        let last = rest[together - 1];
        rest = &rest[together..];
        let hunk = &edits[first.saturating_sub(CONTEXT)..(last + CONTEXT + 1).min(edits.len())];
        write_hunk(&mut text, hunk, &old, &new);
    }
    text
}

fn pretty(value: &Value) -> String {
    use serde::Serialize;
    let mut bytes = Vec::new();
    let formatter = serde_json::ser::PrettyFormatter::with_indent(b" ");
    let mut serializer = serde_json::Serializer::with_formatter(&mut bytes, formatter);
    value.serialize(&mut serializer).expect("writing JSON to memory cannot fail");
    String::from_utf8(bytes).expect("JSON is UTF-8")
}

fn write_hunk(text: &mut String, hunk: &[Edit], old: &[String], new: &[String]) {
    let (Edit::Keep(i, j) | Edit::Remove(i, j) | Edit::Insert(i, j)) = hunk[0];
    let of_old = hunk.iter().filter(|e| !matches!(e, Edit::Insert(..))).count();
    let of_new = hunk.iter().filter(|e| !matches!(e, Edit::Remove(..))).count();
    let range = |start: usize, count: usize| match count {
        0 => format!("{start},0"),
        1 => format!("{}", start + 1),
        _ => format!("{},{count}", start + 1),
    };
    text.push_str(&format!("@@ -{} +{} @@\n", range(i, of_old), range(j, of_new)));
    for edit in hunk {
        let (mark, line) = match *edit {
            Edit::Keep(i, _) => (' ', &old[i]),
            Edit::Remove(i, _) => ('-', &old[i]),
            Edit::Insert(_, j) => ('+', &new[j]),
        };
        text.push(mark);
        text.push_str(line);
        text.push('\n');
    }
}

/// The longest common subsequence decides, after what is equal at both ends.
fn edits(old: &[String], new: &[String]) -> Vec<Edit> {
    let head = old.iter().zip(new).take_while(|(a, b)| a == b).count();
    let tail = old[head..].iter().rev().zip(new[head..].iter().rev()).take_while(|(a, b)| a == b).count();
    let (a, b) = (&old[head..old.len() - tail], &new[head..new.len() - tail]);
    let width = b.len() + 1;
    let mut length = vec![0u16; (a.len() + 1) * width];
    for i in (0..a.len()).rev() {
        for j in (0..b.len()).rev() {
            length[i * width + j] = if a[i] == b[j] {
                length[(i + 1) * width + j + 1] + 1
            } else {
                length[(i + 1) * width + j].max(length[i * width + j + 1])
            };
        }
    }
    let mut edits: Vec<Edit> = (0..head).map(|i| Edit::Keep(i, i)).collect();
    let (mut i, mut j) = (0, 0);
    while i < a.len() || j < b.len() {
        let (at, to) = (head + i, head + j);
        if i < a.len() && j < b.len() && a[i] == b[j] {
            edits.push(Edit::Keep(at, to));
            (i, j) = (i + 1, j + 1);
        } else if i < a.len() && (j == b.len() || length[(i + 1) * width + j] >= length[i * width + j + 1]) {
            edits.push(Edit::Remove(at, to));
            i += 1;
        } else {
            edits.push(Edit::Insert(at, to));
            j += 1;
        }
    }
    edits.extend((0..tail).map(|k| Edit::Keep(old.len() - tail + k, new.len() - tail + k)));
    edits
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    #[test]
    fn a_change_is_shown_with_its_surroundings() {
        let old = json!({"a": 1, "b": 2, "c": 3, "d": 4, "e": 5, "f": 6});
        let mut new = old.clone();
        new["e"] = 7.into();
        assert_eq!(
            super::unified(&old, &new),
            "@@ -3,6 +3,6 @@\n  \"b\": 2,\n  \"c\": 3,\n  \"d\": 4,\n- \"e\": 5,\n+ \"e\": 7,\n  \"f\": 6\n }\n"
        );
        assert_eq!(super::unified(&old, &old), "");
    }
}
