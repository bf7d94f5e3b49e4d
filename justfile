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

# The examples, and random histories beside CR-SQLite's own build (needs Node; `just interop --seeds 5000`).
interop *ARGS:
    cargo build --release -p crsqlite-loadable
    npm test -- {{ARGS}}

# Histories of repositories on a bad network, from seed FROM on; a single one is told in full (docs/testing.md).
simulate SEEDS="2000" FROM="0":
    DDCP_SIM_SEEDS={{SEEDS}} DDCP_SIM_FROM={{FROM}} cargo test --release --test sim -- --nocapture all_are_equal

# Kill the program at random moments, and make each of its file operations fail (a minute per 100 kills).
crash KILLS="500":
    DDCP_CRASH_KILLS={{KILLS}} DDCP_CRASH_FAULTS=100000 cargo test --release -p ddcp --test it -- --nocapture crashes:: faults::

# Fuzz a target: one of fuzz/fuzz_targets (needs cargo-fuzz).
fuzz TARGET SECONDS="1800":
    mkdir -p fuzz/corpus/{{TARGET}}
    cd fuzz && RUSTC_BOOTSTRAP=1 cargo fuzz run {{TARGET}} corpus/{{TARGET}} seeds/{{TARGET}} -- -max_total_time={{SECONDS}}

# The engine's tests under valgrind (minutes).
memcheck:
    PROPTEST_CASES=3 CARGO_TARGET_X86_64_UNKNOWN_LINUX_GNU_RUNNER="valgrind -q --error-exitcode=99 --leak-check=full --errors-for-leak-kinds=definite" cargo test --release -p crsqlite --lib --tests -- --test-threads 1 --exact --skip tables

# Licences, unwanted crates, sources, known vulnerabilities.
deny:
    tests/deny/check

# The public interface of the library, taken as it is into docs/api.txt.
api:
    cargo doc --release --no-deps -p ddcp
    python3 tests/api/list.py --write
