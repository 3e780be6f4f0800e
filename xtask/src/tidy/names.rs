//! Names that fit everything and say nothing.

use std::path::Path;

use super::Finding;
use super::source::Source;

const EMPTY_WORDS: [&str; 5] = ["manager", "helper", "util", "misc", "info"];

pub(super) fn check(source: &Source<'_>) -> Vec<Finding> {
    let finding = |line, item: &str| {
        let text = format!("`{item}` does not say what it is: name it by what it does or holds");
        Finding { rule: "name", path: source.path.to_owned(), line, item: item.to_owned(), text }
    };
    let file = Path::new(source.path).file_stem().map(|stem| stem.to_string_lossy().into_owned()).unwrap_or_default();
    let in_file = is_empty(&file).then(|| finding(1, &file));
    let declared = source.names.iter().filter(|name| is_empty(&name.name)).map(|name| finding(name.line, &name.name));
    in_file.into_iter().chain(declared).collect()
}

fn is_empty(name: &str) -> bool {
    words(name).iter().any(|word| EMPTY_WORDS.iter().any(|empty| word == empty || *word == format!("{empty}s")))
}

/// The words of a name in CamelCase or snake_case, in lower case.
fn words(name: &str) -> Vec<String> {
    let mut words = vec![String::new()];
    for letter in name.chars() {
        if letter == '_' || letter.is_uppercase() {
            words.push(String::new());
        }
        if let Some(word) = words.last_mut().filter(|_| letter != '_') {
            word.extend(letter.to_lowercase());
        }
    }
    words
}
