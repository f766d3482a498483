//! Rows as a table, as JSON, and as one HTML page with the timelines drawn.

use std::fmt::Write;

use serde_json::json;

use super::stats::Row;

/// For a program: an object with `rows`.
pub fn json(rows: &[Row]) -> String {
    json!({ "rows": rows }).to_string()
}

/// For a terminal.
pub fn table(rows: &[Row]) -> String {
    let name = rows.iter().map(|row| row.name.len()).max().unwrap_or(0).max(4);
    let mut table = format!(
        "{:name$}  {:>10}  {:>10}  {:>10}  {:>7}  {:>5}  {:>9}  {:>12}\n",
        "what", "median", "best", "p99", "", "runs", "KVM exits", "instructions"
    );
    for row in rows {
        let or_dash = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let (exits, instructions) = (or_dash(row.exits), or_dash(row.instructions));
        // Writing to a String cannot fail.
        let _ = writeln!(
            table,
            "{:name$}  {:>10.3}  {:>10.3}  {:>10.3}  {:>7}  {:>5}  {exits:>9}  {instructions:>12}",
            row.name, row.median_ms, row.min_ms, row.p99_ms, row.unit, row.runs
        );
    }
    table
}

const COLOURS: [&str; 8] =
    ["#4878a8", "#e49444", "#d1605e", "#85b6b2", "#6a9f58", "#e7ca60", "#a87c9f", "#967662"];
const BAR: f64 = 24.0;
const WIDTH: f64 = 900.0;

/// For a browser: the table, the commands, and a bar of phases for every row that has them.
pub fn html(rows: &[Row]) -> String {
    let mut page = String::from(
        "<!doctype html><meta charset=utf-8><title>bulkhead bench</title>\
         <style>body{font:14px sans-serif;max-width:60em;margin:2em auto}\
         td,th{padding:.2em .8em;text-align:right}td:first-child{text-align:left}\
         code{font-size:12px;overflow-wrap:anywhere}</style><h1>bulkhead bench</h1>",
    );
    page.push_str(&html_table(rows));
    page.push_str(&bars(rows));
    page.push_str("<h2>Commands</h2><dl>");
    for row in rows {
        let (name, command) = (escape(&row.name), escape(&row.command));
        let _ = write!(page, "<dt>{name}<dd><code>{command}</code>");
    }
    page.push_str("</dl>");
    page
}

fn html_table(rows: &[Row]) -> String {
    let mut table = String::from(
        "<table><tr><th>what<th>median<th>best<th>p99<th><th>runs<th>KVM exits<th>instructions",
    );
    for row in rows {
        let or_dash = |count: Option<u64>| count.map_or_else(|| "-".to_owned(), |n| n.to_string());
        let _ = write!(
            table,
            "<tr><td>{}<td>{:.3}<td>{:.3}<td>{:.3}<td>{}<td>{}<td>{}<td>{}",
            escape(&row.name),
            row.median_ms,
            row.min_ms,
            row.p99_ms,
            row.unit,
            row.runs,
            or_dash(row.exits),
            or_dash(row.instructions)
        );
    }
    table.push_str("</table>");
    table
}

/// One bar a row, one segment a phase, all on one scale.
fn bars(rows: &[Row]) -> String {
    let rows: Vec<&Row> = rows.iter().filter(|row| !row.phases.is_empty()).collect();
    let end = |row: &&Row| row.phases.iter().map(|(_, ms)| *ms).fold(0.0, f64::max);
    let longest = rows.iter().map(end).fold(0.0, f64::max);
    if longest <= 0.0 {
        return String::new();
    }
    let height = rows.len() as f64 * (BAR + 26.0) + 10.0;
    let mut svg = format!(
        "<h2>Timelines</h2><svg xmlns='http://www.w3.org/2000/svg' width='{WIDTH}' height='{height}'>"
    );
    for (index, row) in rows.iter().enumerate() {
        let y = index as f64 * (BAR + 26.0) + 18.0;
        let _ =
            write!(svg, "<text x='0' y='{}' font-size='13'>{}</text>", y - 4.0, escape(&row.name));
        let mut from = 0.0;
        for ((phase, ms), colour) in row.phases.iter().zip(COLOURS.iter().cycle()) {
            let (x, width) = (from / longest * WIDTH, (ms - from).max(0.0) / longest * WIDTH);
            let title = format!("{}: {:.3} ms, to {ms:.3} ms", escape(phase), ms - from);
            let _ = write!(
                svg,
                "<rect x='{x:.2}' y='{y}' width='{width:.2}' height='{BAR}' fill='{colour}'>\
                 <title>{title}</title></rect>"
            );
            if width > 60.0 {
                let (x, y) = (x + 4.0, y + 16.0);
                let _ = write!(
                    svg,
                    "<text x='{x:.2}' y='{y}' font-size='11' fill='white'>{}</text>",
                    escape(phase)
                );
            }
            from = ms.max(from);
        }
    }
    svg.push_str("</svg>");
    svg
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('>', "&gt;").replace('\'', "&#39;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows() -> Vec<Row> {
        let mut row = Row::new("boot/a<b", "ms", vec![(2.0, Some(5))]);
        row.phases = vec![("one".to_owned(), 0.5), ("two".to_owned(), 2.0)];
        row.command = "sh -c 'x'".to_owned();
        vec![row, Row::new("clone/c", "ms", vec![(1.0, None)])]
    }

    #[test]
    fn json_has_a_median_for_every_row() {
        let value: serde_json::Value = serde_json::from_str(&json(&rows())).unwrap();
        assert_eq!(value["rows"][0]["name"], "boot/a<b");
        assert_eq!(value["rows"][1]["median_ms"], 1.0);
    }

    #[test]
    fn a_table_has_a_line_for_every_row() {
        let table = table(&rows());
        assert_eq!(table.lines().count(), 3);
        assert!(table.lines().all(|line| line.len() == table.lines().next().unwrap().len()));
    }

    #[test]
    fn a_page_is_escaped_and_draws_phases() {
        let page = html(&rows());
        assert!(page.contains("boot/a&lt;b") && !page.contains("a<b"));
        assert_eq!(page.matches("<rect").count(), 2);
    }
}
