/* The publish and reclaim protocol of fastfeat/_core/readers.pyx, for the model checker spin.

       writer     publish | advance the epoch | retire        reader     claim a slot, raise `high`
                  scan the pins below `high` | free                      pin | load the root | load the piece | unpin
                  sweep: clear a dead pin, expel a slow one              die anywhere, and another one comes
                  die; the next one makes a new generation               move over once `superseded` is seen

   Memory:   x86-TSO. What a process stores waits in its own buffer, first in, first out, and reaches memory at any
             time later; its own loads look there first; a read-modify-write or a fence waits until it is empty. Locks
             are the kernel's: taking one is a read-modify-write, dropping one is a store, and so is its owner's death.
   Pieces:   the root names a piece and the version that was written into it. Freeing a piece overwrites it, as a heap
             does. So a reader whose piece holds another version than the root promised has read reused memory.
   Holds:    no answer that a reader accepted came from reused memory (in `unpin`); a slot has one owner, and is free
             when that one comes in (in `pin`); who is told that its generation is over finds a newer one, and it is
             whole.
   Bugs:     each name below, defined, takes one promise away, and the checker must find out.
                 NO_PIN_FENCE         pin with a plain store
                 SCAN_BEFORE_EPOCH    look at the pins, then unpublish and take the epoch
                 CLEAR_WITHOUT_LOCK   clear the pin of a slot whose lock was seen free, without taking it
                 UNPIN_WITHOUT_SWAP   unpin with a plain store, not seeing that one was expelled
                 HIGH_AFTER_LOAD      raise `high` after the first load from the arena. (Between the pin and that load
                                      would do, says the checker: raising it is a fence, too.)
                 TOLD_TOO_EARLY       tell the readers of the old generation, then name the new one
   Sizes:    READERS, PIECES, WRITES (publications of all writers), READS (accepted, of each reader), DEATHS (of
             readers), GENERATIONS. tests/test_reclaim_model.py checks all states of
                 2 readers, 2 pieces, 2 writes, 1 read each                                         2.4 million states
                 1 reader, 3 pieces, 3 writes, 2 reads, 2 deaths                                    1.5 million
                 1 reader, 2 pieces, 2 writes, 2 reads, 1 death, 2 generations                      1.2 million
             and in a campaign (a minute and more, 1 GB)
                 2 readers, 2 pieces, 1 write, 1 read each, 1 death                                12.2 million
                 2 readers, 2 pieces, 1 write, 1 read each, 2 generations                           6.9 million
*/
#ifndef READERS
#define READERS 2
#endif
#ifndef PIECES
#define PIECES 2
#endif
#ifndef WRITES
#define WRITES 2
#endif
#ifndef READS
#define READS 1
#endif
#ifndef DEATHS
#define DEATHS 0
#endif
#ifndef GENERATIONS
#define GENERATIONS 1
#endif

#define SLOTS READERS
#define NONE 255
#define EXPELLED 254                /* greater than every epoch */
#define LIVE 255                    /* of a piece: not retired */

/* --- memory */

#define EPOCH(g) ((g) * SPAN)
#define ROOT(g) ((g) * SPAN + 1)    /* version * PIECES + piece; 0: nothing was published */
#define HIGH(g) ((g) * SPAN + 2)
#define SUPERSEDED(g) ((g) * SPAN + 3)
#define PIN(g, slot) ((g) * SPAN + 4 + (slot))
#define LOCK(g, slot) ((g) * SPAN + 4 + SLOTS + (slot))
#define PIECE(g, piece) ((g) * SPAN + 4 + 2 * SLOTS + (piece))
#define SPAN (4 + 2 * SLOTS + PIECES)
#define CURRENT (GENERATIONS * SPAN)

#define WRITER 0                    /* readers are 1 and up */
#define SWEEPER (READERS + 1)
#define PROCESSES (READERS + 2)
#define BUFFER 3                    /* stores that may wait; a fuller one has to wait itself */

byte memory[GENERATIONS * SPAN + 1];
byte waiting[PROCESSES];            /* how many stores do */
byte waiting_at[PROCESSES * BUFFER];
byte waiting_value[PROCESSES * BUFFER];
byte deaths;
byte generation;
hidden byte i;

inline load(me, at, into) {
    d_step {
        into = memory[at];
        i = 0;
        do
        :: i < waiting[me] ->
            if
            :: waiting_at[me * BUFFER + i] == at -> into = waiting_value[me * BUFFER + i]
            :: else
            fi;
            i++
        :: else -> break
        od;
        i = 0
    }
}

inline store(me, at, value) {
    d_step {
        waiting[me] < BUFFER ->
        waiting_at[me * BUFFER + waiting[me]] = at;
        waiting_value[me * BUFFER + waiting[me]] = value;
        waiting[me]++
    }
}

inline fence(me) {
    waiting[me] == 0
}

inline swap(me, at, expected, desired, done) {
    d_step {
        waiting[me] == 0 ->
        done = (memory[at] == (expected));
        if
        :: done -> memory[at] = desired
        :: else
        fi
    }
}

inline exchange(me, at, desired, before) {
    d_step {
        waiting[me] == 0 ->
        before = memory[at];
        memory[at] = desired
    }
}

inline add(me, at, before) {
    d_step {
        waiting[me] == 0 ->
        before = memory[at];
        memory[at] = before + 1
    }
}

/* The oldest store of each buffer may reach memory at any time. */
proctype buffer(byte me) {
    end: do
    :: d_step {
            waiting[me] > 0 ->
            memory[waiting_at[me * BUFFER]] = waiting_value[me * BUFFER];
            waiting[me]--;
            i = 0;
            do
            :: i < waiting[me] ->
                waiting_at[me * BUFFER + i] = waiting_at[me * BUFFER + i + 1];
                waiting_value[me * BUFFER + i] = waiting_value[me * BUFFER + i + 1];
                i++
            :: else -> break
            od;
            waiting_at[me * BUFFER + i] = 0;
            waiting_value[me * BUFFER + i] = 0;
            i = 0
        }
    od
}

/* --- readers */

inline may_die() {
    if
    :: deaths < DEATHS -> deaths++; goto died
    :: true
    fi
}

/* The first slot whose lock is to be had; it may still bear a dead owner's pin. */
inline claim() {
    slot = 0;
    do
    :: swap(me, LOCK(g, slot), 0, me + 1, done);
        if
        :: done -> break
        :: else -> slot = (slot + 1) % SLOTS
        fi
    od;
    store(me, PIN(g, slot), 0);
#ifndef HIGH_AFTER_LOAD
    raise_high();
#endif
}

inline raise_high() {
    do
    :: load(me, HIGH(g), word);
        if
        :: word > slot -> break
        :: else -> swap(me, HIGH(g), word, slot + 1, done)
        fi
    od;
    word = 0
}

inline pin() {
    load(me, EPOCH(g), epoch);
#ifdef NO_PIN_FENCE
    store(me, PIN(g, slot), epoch);
#else
    swap(me, PIN(g, slot), 0, epoch, done);
    assert(done);
#endif
    epoch = 0
}

inline unpin() {
#ifdef UNPIN_WITHOUT_SWAP
    store(me, PIN(g, slot), 0);
    word = 0;
#else
    exchange(me, PIN(g, slot), 0, word);
#endif
    d_step {
        if
        :: word != EXPELLED ->
            assert(found == root / PIECES);
            reads++
        :: else
        fi;
        word = 0; root = 0; found = 0
    }
}

proctype reader(byte me) {
    byte g = NONE, slot = NONE, reads, epoch, root, found, word;
    bool done;

    born:
    load(me, CURRENT, g);
    do
    :: reads == READS -> break
    :: else ->
        load(me, SUPERSEDED(g), word);
        if
        :: word != 0 ->
            if
            :: slot != NONE -> store(me, LOCK(g, slot), 0)
            :: else
            fi;
            slot = NONE;
            load(me, CURRENT, word);
            assert(word > g);
            g = word
        :: else
        fi;
        word = 0;
        if
        :: slot == NONE -> claim()
        :: else
        fi;
        pin();
        may_die();
        load(me, ROOT(g), root);
        assert(root != 0);
#ifdef HIGH_AFTER_LOAD
        raise_high();
#endif
        load(me, PIECE(g, root % PIECES), found);
        may_die();
        unpin()
    od;
    goto over;

    died:
    fence(me);                      /* what was stored reaches memory before another process runs here */
    d_step {
        memory[LOCK(g, slot)] = 0;
        g = NONE; slot = NONE; root = 0; found = 0; word = 0; done = false
    }
    goto born;

    over:
    skip
}

/* --- the writer */

inline scan() {
    fence(WRITER);
    atomic { load(WRITER, HIGH(generation), high); oldest = NONE }
    do
    :: slot < high ->
        atomic {
            load(WRITER, PIN(generation, slot), word);
            if
            :: word != 0 && word < oldest -> oldest = word
            :: else
            fi;
            word = 0;
            slot++
        }
    :: else -> break
    od;
    atomic { slot = 0; high = 0 }
}

inline free_old() {
    do
    :: piece < PIECES ->
        atomic {
            if
            :: retired[piece] != 0 && retired[piece] < oldest ->
                store(WRITER, PIECE(generation, piece), 0);
                retired[piece] = 0
            :: else
            fi;
            piece++
        }
    :: else -> break
    od;
    atomic { piece = 0; oldest = 0 }
}

inline publish() {
    atomic {
        writes++;
        do
        :: retired[piece] != 0 -> piece++
        :: else -> break
        od;
        store(WRITER, PIECE(generation, piece), writes + 1)
    }
    store(WRITER, ROOT(generation), (writes + 1) * PIECES + piece);
    atomic {
        add(WRITER, EPOCH(generation), word);
        retired[live] = word;
        retired[piece] = LIVE;
        live = piece;
        piece = 0;
        word = 0
    }
}

/* A new writer: everything anew, and when it is whole, readers are let in, then told. */
inline begin_generation() {
    d_step {
        waiting[WRITER] == 0 ->
        generation++;
        piece = 0;
        do
        :: piece < PIECES -> retired[piece] = 0; piece++
        :: else -> break
        od;
        piece = 0; live = 0; retired[0] = LIVE; word = 0; high = 0; slot = 0; oldest = 0; done = false
    }
    store(WRITER, EPOCH(generation), 1);
    store(WRITER, PIECE(generation, 0), writes + 1);
    store(WRITER, ROOT(generation), (writes + 1) * PIECES);
#ifdef TOLD_TOO_EARLY
    store(WRITER, SUPERSEDED(generation - 1), generation);
    store(WRITER, CURRENT, generation)
#else
    store(WRITER, CURRENT, generation);
    store(WRITER, SUPERSEDED(generation - 1), generation)
#endif
}

#define HAS_ROOM (retired[0] == 0 || retired[1] == 0 || retired[PIECES - 1] == 0)
#define HAS_RETIRED (retired[0] != 0 && retired[0] != LIVE || retired[1] != 0 && retired[1] != LIVE || \
                     retired[PIECES - 1] != 0 && retired[PIECES - 1] != LIVE)

proctype writer() {
    byte writes, live, piece, slot, high, oldest, word, retired[PIECES];
    bool done;

    retired[0] = LIVE;
    end: do
    :: writes < WRITES && HAS_ROOM ->
#ifdef SCAN_BEFORE_EPOCH
        scan();
        publish();
        free_old()
#else
        publish()
#endif
#ifndef SCAN_BEFORE_EPOCH
    :: HAS_RETIRED ->
        scan();
        free_old()
#endif
    :: generation + 1 < GENERATIONS -> begin_generation()
    od
}

inline clear_dead() {
#ifdef CLEAR_WITHOUT_LOCK
    load(SWEEPER, LOCK(g, slot), word);
    if
    :: word == 0 -> store(SWEEPER, PIN(g, slot), 0)
    :: else
    fi
#else
    swap(SWEEPER, LOCK(g, slot), 0, SWEEPER + 1, done);
    if
    :: done ->
        store(SWEEPER, PIN(g, slot), 0);
        store(SWEEPER, LOCK(g, slot), 0)
    :: else
    fi
#endif
}

/* Another thread of the writer's process, which looks at one slot after another at any time. */
proctype sweeper() {
    byte g, slot, word;
    bool done;

    end: do
    :: atomic {
            g = generation;
            do
            :: slot + 1 < SLOTS -> slot++
            :: break
            od;
            load(SWEEPER, PIN(g, slot), word);
            if
            :: word == 0 || word == EXPELLED -> goto rest
            :: else
            fi
        }
        if
        :: clear_dead()
        :: swap(SWEEPER, PIN(g, slot), word, EXPELLED, done)
        fi;
        rest: atomic { g = 0; word = 0; slot = 0; done = false }
    od
}

init {
    byte each;
    atomic {
        memory[EPOCH(0)] = 1;
        memory[PIECE(0, 0)] = 1;
        memory[ROOT(0)] = PIECES;
        run writer();
        run buffer(WRITER);
        run sweeper();
        run buffer(SWEEPER);
        each = 1;
        do
        :: each <= READERS ->
            run reader(each);
            run buffer(each);
            each++
        :: else -> break
        od
    }
}
