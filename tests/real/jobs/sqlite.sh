# SQLite: a rollback journal, then a write-ahead log, whose index is a shared mapping.
mkdir -p /root/sqlite
cd /root/sqlite
sqlite3 journal.db <<'END'
CREATE TABLE word (id INTEGER PRIMARY KEY, text TEXT UNIQUE, number INTEGER);
WITH RECURSIVE n(i) AS (SELECT 1 UNION ALL SELECT i + 1 FROM n WHERE i < 20000)
INSERT INTO word SELECT i, printf('word %06d', (i * 7919) % 1000003), i % 97 FROM n;
CREATE INDEX by_number ON word(number);
BEGIN; DELETE FROM word; ROLLBACK;
DELETE FROM word WHERE id % 3 = 0;
VACUUM;
END
must_be "$(sqlite3 journal.db 'PRAGMA integrity_check; SELECT count(*), sum(id) FROM word')" "ok
13334|133346667"
must_be "$(sqlite3 log.db 'PRAGMA journal_mode = WAL; CREATE TABLE t (who, i);')" wal
for who in one two; do
    for i in $(seq 1 60); do
        echo "PRAGMA busy_timeout = 60000; INSERT INTO t VALUES ('$who', $i);"
    done | sqlite3 log.db >/dev/null &
done
wait
must_be "$(sqlite3 log.db 'SELECT who, count(*), sum(i) FROM t GROUP BY who ORDER BY who')" "one|60|1830
two|60|1830"
must_be "$(sqlite3 log.db 'PRAGMA wal_checkpoint(TRUNCATE); PRAGMA integrity_check')" "0|0|0
ok"
# The order of two writers is chance: what stays is the same everywhere.
sqlite3 log.db 'SELECT who, i FROM t ORDER BY who, i' >log.txt
rm log.db
