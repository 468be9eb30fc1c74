//! Normalisation of account names.

use unicode_normalization::UnicodeNormalization;

/// Returns a name as most applications compare it: without surrounding spaces and invisible
/// characters, in compatibility form (NFKC: width, ligatures), and in lower case.
///
/// ```
/// use scale_limit::guard::login::normalise;
///
/// assert_eq!(normalise(" Ann@Ｅxample.com\u{200b}"), "ann@example.com");
/// ```
pub fn normalise(name: &str) -> String {
    let folded: String =
        name.nfkc().filter(|c| !is_unseen(*c)).collect::<String>().to_lowercase().nfkc().collect();
    folded.trim().to_owned()
}

/// Returns whether a character is invisible, or only changes how its neighbours look (Unicode:
/// `Cc`, `Cf`, `Default_Ignorable_Code_Point`). Databases ignore most of them in comparisons.
fn is_unseen(c: char) -> bool {
    c.is_control()
        || matches!(c,
            '\u{ad}' | '\u{34f}' | '\u{600}'..='\u{605}' | '\u{61c}' | '\u{6dd}' | '\u{70f}'
            | '\u{890}'..='\u{891}' | '\u{8e2}' | '\u{115f}'..='\u{1160}' | '\u{17b4}'..='\u{17b5}'
            | '\u{180b}'..='\u{180f}' | '\u{200b}'..='\u{200f}' | '\u{202a}'..='\u{202e}'
            | '\u{2060}'..='\u{206f}' | '\u{3164}' | '\u{fe00}'..='\u{fe0f}' | '\u{feff}'
            | '\u{ffa0}' | '\u{fff0}'..='\u{fffb}' | '\u{110bd}' | '\u{110cd}'
            | '\u{13430}'..='\u{1343f}' | '\u{1bca0}'..='\u{1bca3}'
            | '\u{1d173}'..='\u{1d17a}' | '\u{e0000}'..='\u{e0fff}')
}
