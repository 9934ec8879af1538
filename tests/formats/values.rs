//! Values that have broken somebody's env file.

use std::iter;

/// The longest line that Docker and the kubelet read.
pub(crate) const LONGEST_LINE: usize = 65_535;

const FIXED: [&str; 62] = [
    "",
    "plain",
    "sk-1234_abcd/+=",
    " leading",
    "trailing ",
    "\tleading tab",
    "trailing tab\t",
    " ",
    "\n",
    "\r",
    "\r\n",
    "\n\n",
    "a\nb",
    "a\r\nb",
    "a\rb",
    "a\r",
    "\ra",
    "a\n",
    "\na",
    "a\nK0=b\nexport K1=c",
    "-----BEGIN PRIVATE KEY-----\nMIIE\n-----END PRIVATE KEY-----\n",
    "'",
    "''",
    "it's",
    "\"",
    "say \"so\"",
    "'\"",
    "it's \"so\"",
    "it's `so`",
    "`",
    "`touch canary`",
    "`>canary`",
    "it's \"`so`\"",
    "`it's \"so\"",
    "\\",
    "\\\\",
    "a\\",
    "a\\\\",
    "a\\nb",
    "a\\'b",
    "a\\\"b",
    "C:\\new\\table",
    "it's C:\\new",
    "$X",
    "it's $X",
    "${X}",
    "${X:-default}",
    "${",
    "${X",
    "$$",
    "it's $1 or $(X)",
    "$(touch canary)",
    "$(>canary)",
    "'$(>canary)'",
    "';>canary;'",
    "\"; >canary; \"",
    "\n>canary\n",
    "# no comment",
    "a #b",
    "!history",
    "{\"type\": \"service_account\", \"key\": \"-----BEGIN\\n\"}",
    "\u{feff}grüße, 東京 🌊\u{2028}\u{85}\u{a0}\u{7f}\u{1b}",
];

const PIECES: [&str; 42] = [
    "'",
    "\"",
    "`",
    "\\",
    "$",
    "{",
    "}",
    "X",
    ":",
    "-",
    "#",
    " ",
    "\t",
    "\n",
    "\r",
    "\r\n",
    "n",
    "r",
    "0",
    "a",
    "=",
    "!",
    "~",
    "*",
    ";",
    "&",
    "|",
    "<",
    ">",
    "(",
    ")",
    "$(>canary)",
    "`>canary`",
    "${X}",
    "$X",
    "é",
    "東",
    "🌊",
    "\u{2028}",
    "\u{85}",
    "\u{feff}",
    "\u{1}",
];

/// Of which every combination of three is tried.
const SPECIAL: [&str; 17] =
    ["'", "\"", "`", "\\", "$", "{", "}", "X", ":", "-", "#", " ", "\n", "\r", "n", "0", "\u{17f}"];

/// Batches of values: what is fixed, each character of the first planes, long values, and `count` at random. The seed is
/// printed; `KEYTIDE_FORMAT_SEED` sets it.
pub(crate) fn batches(count: usize) -> Vec<Vec<String>> {
    let mut rng = rng();
    let fixed = FIXED.map(str::to_owned).to_vec();
    let special = of_special_characters();
    let characters = (0..=0x2fff).filter_map(char::from_u32).map(|c| c.to_string());
    let characters: Vec<_> = characters.collect::<Vec<_>>().chunks(64).map(<[String]>::concat).collect();
    let nul = vec!["\0".to_owned(), "a\0b".to_owned(), "a\0".to_owned()];
    let long =
        ["x", "'", "x\n", "it's \\ ", "$(>canary) ", "é"].map(|piece| piece.repeat(65_536 / piece.len())).to_vec();
    let random = iter::repeat_with(|| iter::repeat_with(|| random(&mut rng)).take(50).collect()).take(count);
    [fixed, characters, nul, long].into_iter().chain(special.chunks(500).map(<[_]>::to_vec)).chain(random).collect()
}

/// Every text of up to three special characters, and some longer ones.
pub(crate) fn of_special_characters() -> Vec<String> {
    let mut rng = rng();
    let mut texts = vec![String::new()];
    let mut longest = texts.clone();
    for _ in 0..3 {
        longest = longest.iter().flat_map(|text| SPECIAL.map(|piece| format!("{text}{piece}"))).collect();
        texts.extend_from_slice(&longest);
    }
    texts.extend(FIXED.map(str::to_owned));
    texts.extend(["\0".to_owned(), "a\0b".to_owned(), "a\0".to_owned()]);
    texts.extend(
        iter::repeat_with(|| {
            let length = rng.usize(4..12);
            iter::repeat_with(|| SPECIAL[rng.usize(..SPECIAL.len())]).take(length).collect()
        })
        .take(500),
    );
    texts
}

/// A value as a message shows it.
pub(crate) fn short(value: &[u8]) -> String {
    let text = String::from_utf8_lossy(value);
    if text.len() < 200 {
        format!("{text:?}")
    } else {
        format!("{:?}… ({} bytes)", text.chars().take(100).collect::<String>(), text.len())
    }
}

fn random(rng: &mut fastrand::Rng) -> String {
    let length = rng.usize(..24);
    iter::repeat_with(|| PIECES[rng.usize(..PIECES.len())]).take(length).collect()
}

#[expect(clippy::disallowed_methods, clippy::print_stdout, reason = "whoever repeats a failure gives the seed here")]
fn rng() -> fastrand::Rng {
    let given = std::env::var("KEYTIDE_FORMAT_SEED").ok();
    let seed = given.map_or_else(|| fastrand::u64(..), |seed| seed.parse().unwrap());
    println!("KEYTIDE_FORMAT_SEED={seed}");
    fastrand::Rng::with_seed(seed)
}
