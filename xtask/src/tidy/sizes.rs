//! How much fits in a reader's head.

use super::Finding;
use super::source::Source;

const FILE_LINES: usize = 400;
const FUNCTION_LINES: usize = 60;
const PARAMETERS: usize = 5;

pub(super) fn check(source: &Source<'_>) -> Vec<Finding> {
    let finding = |line, item: &str, text| {
        let (path, item) = (source.path.to_owned(), item.to_owned());
        Finding { rule: "size", path, line, item, text }
    };
    let mut found = Vec::new();
    if source.lines > FILE_LINES {
        let text = format!("{} lines that are not tests; at most {FILE_LINES}: where is the seam?", source.lines);
        found.push(finding(1, "file", text));
    }
    for function in &source.functions {
        if function.lines > FUNCTION_LINES {
            let text = format!("a function of {} lines; at most {FUNCTION_LINES}", function.lines);
            found.push(finding(function.line, &function.name, text));
        }
        if function.parameters > PARAMETERS {
            let text = format!("{} parameters; at most {PARAMETERS}", function.parameters);
            found.push(finding(function.line, &function.name, text));
        }
    }
    found
}
