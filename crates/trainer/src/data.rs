//! From the words of a recipe to the pictures a network is shown.

pub mod contact_sheet;
pub mod inspect;
pub mod presentation;
pub mod source;
