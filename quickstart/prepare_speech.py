"""Doctors' orders, spoken by machine: speech to learn from. Run: python quickstart/prepare_speech.py

    "Give 250 milligrams of metoprolol twice a day for 7 days."     three accents, nine voices, five speeds, three pitches

No corpus of read speech ships in a package, so the sentences are made by rules and spoken by eSpeak NG (GPL-3, as the
package espeakng-loader has it: pip install 'espeakng-loader==0.2.4'). A sentence is either learnt or held out, never both;
the names of the medicines are in both, for they are what is to be learnt. So it proves that a Whisper learns a field's
words, not how well it hears people: for that look at real speech, and for what it forgets at the clips below.

Writes quickstart/data/speech_{train,test}.jsonl (columns audio and text) and the sound files beside them; the same bytes
every time on one kind of machine. Where Debian's package pocketsphinx-testdata is installed, or unpacked in --clips, also
speech_people.jsonl: ten clips of people (five of LibriVox, five of card games), which are never learnt.
"""

import argparse
import ctypes
import json
import random
import re
import shutil
import wave
from pathlib import Path

DATA = Path(__file__).parent / "data"
TRAIN, TEST = 320, 100
VOICES = ("en", "en-us", "en-us+f3", "en+f2", "en-us+m2", "en+m7", "en-gb-scotland", "en-us+klatt3", "en-gb-x-rp+f4")
SPEEDS, PITCHES = (130, 145, 160, 175, 190), (35, 50, 65)  # words a minute; of 99
RATE, PITCH, UTF8 = 1, 3, 1  # espeak_RATE, espeak_PITCH, espeakCHARS_UTF8 (speak_lib.h)
SYNCHRONOUS = 2  # AUDIO_OUTPUT_SYNCHRONOUS: nothing is played
CLIPS = Path("/usr/share/pocketsphinx/test/data")
MEDICINES = [
    "amlodipine", "apixaban", "azathioprine", "bisoprolol", "budesonide", "carbamazepine", "ciprofloxacin",
    "citalopram", "clopidogrel", "colchicine", "dapagliflozin", "desloratadine", "diclofenac", "doxycycline",
    "enalapril", "escitalopram", "ezetimibe", "febuxostat", "fluconazole", "furosemide", "gabapentin",
    "gliclazide", "hydroxyzine", "indapamide", "lamotrigine", "levetiracetam", "levothyroxine", "lisinopril",
    "loperamide", "metformin", "methotrexate", "metoprolol", "mirtazapine", "montelukast", "nitrofurantoin",
    "olanzapine", "omeprazole", "pantoprazole", "pregabalin", "quetiapine", "ramipril", "rivaroxaban",
    "rosuvastatin", "sertraline", "spironolactone", "tamsulosin", "torasemide", "venlafaxine",
]  # fmt: skip
DOSES = (5, 10, 20, 25, 40, 50, 75, 100, 150, 200, 250, 400, 500)
OFTEN = ("once a day", "twice a day", "three times a day", "every evening", "every morning")
WAYS = (
    "Give {dose} milligrams of {one} {often} for {days} days.",
    "Stop {one} and begin {other}, {dose} milligrams {often}.",
    "The patient takes {one} and {other} {often}.",
    "{One}, {dose} milligrams {often}, not together with {other}.",
    "Please reduce {one} to {dose} milligrams {often}.",
    "There was a rash after {one}, so we changed to {other}.",
)


def main() -> None:
    """Make the files, unless they are there."""
    parser = argparse.ArgumentParser(description="Doctors' orders, spoken by eSpeak NG.")
    parser.add_argument("--clips", type=Path, default=CLIPS, help="pocketsphinx-testdata's folder test/data")
    clips = parser.parse_args().clips
    if not (DATA / "speech_test.jsonl").exists():
        make_orders()
    if clips.is_dir():
        take_clips(clips)
    else:
        print("no clips of people: install Debian's pocketsphinx-testdata, or name its folder with --clips")


def make_orders() -> None:
    """Sentences by the seed, each spoken once."""
    dice, sentences = random.Random(0), dict[str, None]()
    while len(sentences) < TRAIN + TEST:
        one, other = dice.sample(MEDICINES, 2)
        numbers = {"dose": dice.choice(DOSES), "days": dice.randint(3, 28), "often": dice.choice(OFTEN)}
        sentences[dice.choice(WAYS).format(one=one, other=other, One=one.capitalize(), **numbers)] = None
    speaker, rows = Speaker(), []
    (DATA / "speech").mkdir(parents=True, exist_ok=True)
    for i, text in enumerate(sentences):
        voice, speed, pitch = dice.choice(VOICES), dice.choice(SPEEDS), dice.choice(PITCHES)
        speaker.say(text, voice, speed, pitch, DATA / "speech" / f"{i:04d}.wav")
        rows.append({"audio": f"speech/{i:04d}.wav", "text": text, "voice": voice})
    _write("speech_train", rows[TEST:])
    _write("speech_test", rows[:TEST])
    print(f"{TRAIN} spoken orders to learn from, {TEST} others held out")


class Speaker:
    """eSpeak NG's library, asked through its C interface (speak_lib.h)."""

    def __init__(self) -> None:
        try:
            import espeakng_loader  # pyright: ignore[reportMissingImports]
        except ImportError:
            raise SystemExit("this needs eSpeak NG: pip install 'espeakng-loader==0.2.4'") from None
        self.library = ctypes.CDLL(espeakng_loader.get_library_path())
        place = str(espeakng_loader.get_data_path()).encode()
        self.rate = self.library.espeak_Initialize(SYNCHRONOUS, 0, place, 0)
        if self.rate <= 0:
            raise SystemExit("eSpeak NG does not begin: its data are missing")
        self.sound = bytearray()
        kind = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(ctypes.c_short), ctypes.c_int, ctypes.c_void_p)
        self._listen = kind(self._take)  # kept, for the library holds only its address
        self.library.espeak_SetSynthCallback(self._listen)

    def _take(self, samples, many: int, _) -> int:
        if samples and many > 0:
            self.sound += ctypes.string_at(samples, 2 * many)
        return 0

    def say(self, text: str, voice: str, speed: int, pitch: int, file: Path) -> None:
        """Write a WAV file, 16 bits, one channel, 22,050 samples a second."""
        self.sound.clear()
        if self.library.espeak_SetVoiceByName(voice.encode()):
            raise SystemExit(f"eSpeak NG has no voice {voice}")
        self.library.espeak_SetParameter(RATE, speed, 0)
        self.library.espeak_SetParameter(PITCH, pitch, 0)
        raw = text.encode()
        self.library.espeak_Synth(raw, len(raw) + 1, 0, 0, 0, UTF8, None, None)
        self.library.espeak_Synchronize()
        with wave.open(str(file), "wb") as out:
            out.setnchannels(1)
            out.setsampwidth(2)
            out.setframerate(self.rate)
            out.writeframes(bytes(self.sound))


def take_clips(folder: Path) -> None:
    """Ten clips of people and what they say, in small letters and without punctuation."""
    rows = []
    (DATA / "speech").mkdir(parents=True, exist_ok=True)
    for place, file in (("librivox", "transcription"), ("cards", "cards.transcription")):
        for line in (folder / place / file).read_text(encoding="utf-8").splitlines():
            found = re.fullmatch(r"<s> (.*?) +</s> \((.*)\)", line.strip())
            if found:
                shutil.copy(folder / place / f"{found[2]}.wav", DATA / "speech")
                rows.append({"audio": f"speech/{found[2]}.wav", "text": found[1]})
    _write("speech_people", rows)
    print(f"{len(rows)} clips of people")


def _write(name: str, rows: list[dict[str, str]]) -> None:
    (DATA / f"{name}.jsonl").write_text("".join(json.dumps(x) + "\n" for x in rows), encoding="utf-8")


if __name__ == "__main__":
    main()
