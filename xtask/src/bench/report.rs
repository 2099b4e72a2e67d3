//! The report: `report.json`, `report.md`, and `report.html` with plots and no network.

use std::fmt::Write;
use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use serde_json::{Map, Value};

/// Writes all three.
pub fn write(dir: &Path, report: &Map<String, Value>) -> Result<()> {
    fs::create_dir_all(dir).with_context(|| format!("cannot create {}", dir.display()))?;
    let json = serde_json::to_string_pretty(report)?;
    let mut markdown = String::from("# Benchmarks (emulated)\n");
    let mut html = String::from(
        "<!doctype html><meta charset=utf-8><title>Benchmarks</title><style>body{font:15px sans-serif;max-width:60em;\
         margin:2em auto}td,th{padding:.2em .8em;text-align:right}svg{background:#f6f6f6}</style><h1>Benchmarks (emulated)</h1>",
    );
    if let Some(rows) = report.get("flexmem").and_then(|f| f.get("rows")).and_then(Value::as_array) {
        markdown.push_str("\n## flexmem: instructions per page\n\n| operation | pages | resident | median | p10 | p90 |\n|---|---|---|---|---|---|\n");
        for row in rows {
            let number = |key: &str| row.get(key).and_then(Value::as_f64).unwrap_or(f64::NAN);
            writeln!(
                markdown,
                "| {} | {} | {} | {:.0} | {:.0} | {:.0} |",
                row.get("operation").and_then(Value::as_str).unwrap_or("?"),
                number("pages"),
                number("resident"),
                number("instructions_per_page"),
                number("p10"),
                number("p90")
            )?;
        }
        html.push_str("<h2>Flex-Mem: instructions per page</h2>");
        html.push_str(&bars(rows));
    }
    if let Some(boot) = report.get("boot") {
        let line = format!(
            "\n## boot\n\nratio with / without the hypervisor: virtual time {}, wall time {} (n = {})\n",
            boot["virtual_ticks"]["ratio"], boot["wall"]["ratio"], boot["wall"]["n"]
        );
        markdown.push_str(&line);
        html.push_str("<h2>Boot</h2><p>");
        html.push_str(line.rsplit("\n\n").next().unwrap_or_default());
    }
    if let Some(rows) = report.get("engine").and_then(|engine| engine["rows"].as_array()) {
        let table = engine(rows);
        markdown.push_str("\n## engine: tokens/s, and their ratio to llama.cpp's\n\n");
        markdown.push_str(&table);
        write!(html, "<h2>Engine: tokens/s, and their ratio to llama.cpp's</h2><pre>{table}</pre>")?;
    }
    write!(html, "<h2>All figures</h2><pre>{}</pre>", json.replace('<', "&lt;"))?;
    for (name, text) in [("report.json", &json), ("report.md", &markdown), ("report.html", &html)] {
        let path = dir.join(name);
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))?;
    }
    Ok(())
}

/// A line for each measurement of the engine.
fn engine(rows: &[Value]) -> String {
    let mut table = String::from(
        "| where | CPU | threads | format | prefill | ratio | decode | ratio | memory |\n|---|---|---|---|---|---|---|---|---|\n",
    );
    for row in rows {
        let text = |key: &str| row[key].as_str().unwrap_or("?");
        let number = |value: &Value| value.as_f64().unwrap_or(f64::NAN);
        let _ = writeln!(
            table,
            "| {} | {} | {} | {} | {:.1} | {:.2} | {:.1} | {:.2} | {:.2} |",
            text("place"),
            text("cpu"),
            row["threads"],
            text("format"),
            number(&row["prefill"]["engine"]),
            number(&row["prefill"]["ratio"]),
            number(&row["decode"]["engine"]),
            number(&row["decode"]["ratio"]),
            number(&row["memory"]["ratio"])
        );
    }
    table
}

/// A bar for each row, split by part.
fn bars(rows: &[Value]) -> String {
    const COLORS: [(&str, &str); 4] =
        [("validate", "#4477aa"), ("tables", "#ee6677"), ("tlbi", "#ccbb44"), ("scrub", "#228833")];
    let total = |row: &Value| row["instructions_per_page"].as_f64().unwrap_or(0.0);
    let largest = rows.iter().map(total).fold(1.0, f64::max);
    let mut svg = format!("<svg width=900 height={}>", rows.len() * 22 + 30);
    for (index, row) in rows.iter().enumerate() {
        let y = index * 22 + 8;
        let label = format!(
            "{} {} pages, {} resident",
            row["operation"].as_str().unwrap_or("?"),
            row["pages"],
            row["resident"]
        );
        let _ = write!(svg, "<text x=4 y={} font-size=12>{label}</text>", y + 12);
        let mut x = 230.0;
        for (part, color) in COLORS {
            let width = row["parts"][part].as_f64().unwrap_or(0.0) / largest * 560.0;
            let _ = write!(svg, "<rect x={x:.1} y={y} width={width:.1} height=16 fill={color} />");
            x += width;
        }
        let _ = write!(svg, "<text x={:.1} y={} font-size=12>{:.0}</text>", x + 6.0, y + 12, total(row));
    }
    let mut x = 230;
    for (part, color) in COLORS {
        let y = rows.len() * 22 + 12;
        let _ = write!(
            svg,
            "<rect x={x} y={y} width=12 height=12 fill={color} /><text x={} y={} font-size=12>{part}</text>",
            x + 16,
            y + 11
        );
        x += 100;
    }
    svg + "</svg>"
}

/// Prints which medians moved by more than one percent against the committed baseline.
pub fn compare(baseline: &Path, report: &Map<String, Value>) -> Result<()> {
    let text = fs::read_to_string(baseline).with_context(|| format!("cannot read {}", baseline.display()))?;
    let old: Value = serde_json::from_str(&text).with_context(|| format!("in {}", baseline.display()))?;
    let mut moved = 0;
    let rows = |value: &Value| value["rows"].as_array().cloned().unwrap_or_default();
    let now = report.get("flexmem").map(rows).unwrap_or_default();
    for new in now {
        let same = |row: &&Value| ["operation", "pages", "resident"].iter().all(|key| row[*key] == new[*key]);
        let before =
            rows(&old["flexmem"]).iter().find(same).and_then(|row| row["instructions_per_page"].as_f64());
        let after = new["instructions_per_page"].as_f64().unwrap_or(f64::NAN);
        if let Some(before) = before
            && (after - before).abs() > before * 0.01
        {
            println!("moved: {} {} pages: {before:.0} -> {after:.0}", new["operation"], new["pages"]);
            moved += 1;
        }
    }
    println!("check: {moved} figures moved");
    Ok(())
}
