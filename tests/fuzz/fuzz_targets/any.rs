//! libFuzzer's loop around one target, named by `UNDERSTUDY_FUZZ_TARGET`.
#![no_main]

use std::sync::LazyLock;

static TARGET: LazyLock<&fuzz::Target> = LazyLock::new(|| {
    let name = std::env::var("UNDERSTUDY_FUZZ_TARGET").expect("UNDERSTUDY_FUZZ_TARGET");
    fuzz::find(&name).unwrap_or_else(|| panic!("no target is called {name}"))
});

libfuzzer_sys::fuzz_target!(
    // A panic that the product itself catches does no harm; libFuzzer's own hook would abort at it.
    init: std::panic::set_hook(Box::new(|panic| eprintln!("{panic}"))),
    |bytes: &[u8]| (TARGET.run)(bytes)
);
