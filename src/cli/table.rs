//! Text tables as kubectl prints them: columns padded to their widest cell, three blanks between.

/// Formats rows under headers.
pub fn format(headers: &[&str], rows: &[Vec<String>]) -> String {
    let width = |column: usize| {
        rows.iter().filter_map(|r| r.get(column)).map(|cell| cell.chars().count()).chain([headers[column].len()]).max()
    };
    let widths: Vec<usize> = (0..headers.len()).map(|c| width(c).unwrap_or_default()).collect();
    let mut text = String::new();
    let headers: Vec<String> = headers.iter().map(|h| (*h).to_owned()).collect();
    for row in std::iter::once(&headers).chain(rows) {
        let mut line = String::new();
        for (cell, width) in row.iter().zip(&widths) {
            line += &format!("{cell:width$}   ");
        }
        text += line.trim_end();
        text.push('\n');
    }
    text
}

#[cfg(test)]
mod tests {
    #[test]
    fn columns_are_as_wide_as_their_widest_cell() {
        let text =
            super::format(&["A", "LONG"], &[vec!["wide cell".into(), "x".into()], vec![String::new(), "y".into()]]);
        assert_eq!(text, "A           LONG\nwide cell   x\n            y\n");
    }
}
