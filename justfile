# The tasks of a developer. `just` lists them.

default:
    @just --list

# Everything that must hold before a change lands.
check:
    bash .ci/run

# All tests: unit, property, command line, and end to end on a private Veilid network.
test *ARGS:
    cargo test --release {{ARGS}}

# Two repositories on a private Veilid network, from nothing to identical.
demo:
    cargo run --release --bin demo

# How fast CRRs are beside plain tables (docs/performance.md): `just bench-engine 10000 --rounds 5 --cpu`.
bench-engine *ARGS:
    cargo bench -p crsqlite --bench engine -- {{ARGS}}

# The engine as a loadable extension for other languages.
extension:
    cargo build --release -p crsqlite-loadable

# Licences, duplicate and unwanted crates, known vulnerabilities (needs cargo-deny).
deny:
    cargo deny check
