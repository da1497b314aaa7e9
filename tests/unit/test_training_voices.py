"""The speech of the training data: which voices there are, and that each says the same thing every time."""

import numpy as np
import pytest

from training import augment
from training.voices import Delivery, Synthesizer, Voice, held_out_voices, train_voices

TEXT = "The weather was pleasant enough that we walked along the river."
VOICES = [
    Voice("espeak", "en-us+f2"),
    Voice("espeak", "en-gb-scotland+m3", 1.1),
    Voice("hibari", "heart", 1.12),
    Voice("hibari", "heart+baritone", 0.9),
    Voice("piper", "joe"),
    Voice("flite", "slt"),
    Voice("flite", "kal"),
]
NEEDS = {
    "espeak": "espeakng_loader",
    "hibari": "hibari",
    "piper": "piper",
}


@pytest.fixture(scope="module")
def speak():
    return Synthesizer()


def require(voice):
    """Skip where the voice's engine is not installed: training's packages are optional."""
    if voice.engine == "flite":
        import shutil

        if shutil.which("flite") is None:
            pytest.skip("no flite")
    else:
        pytest.importorskip(NEEDS[voice.engine])


def test_no_voice_is_both_trained_on_and_held_out():
    trained = {voice.speaker for voice in train_voices()}
    held_out = {voice.speaker for engine in ("espeak", "piper", "flite") for voice in held_out_voices(engine)}
    assert len(train_voices()) > 100
    assert not trained & held_out
    assert {voice.engine for voice in train_voices()} == {"espeak", "hibari"}


def test_held_out_espeak_voices_are_of_both_sexes_and_bring_new_accents():
    voices = held_out_voices("espeak")
    assert {voice.sex for voice in voices} == {"female", "male"}
    assert {voice.accent for voice in voices} > {voice.accent for voice in train_voices()}


def test_voices_of_unknown_engines_are_refused(speak):
    with pytest.raises(ValueError, match="held out"):
        held_out_voices("nobody")
    with pytest.raises(ValueError, match="no engine"):
        speak(TEXT, Voice("nobody", "x"))


@pytest.mark.slow
@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.speaker)
def test_a_voice_says_the_same_thing_every_time(speak, voice):
    require(voice)
    first = speak(TEXT, voice)
    speak("Something else in between.", voice)
    assert np.array_equal(first, speak(TEXT, voice))
    assert np.array_equal(first, Synthesizer()(TEXT, voice))


@pytest.mark.slow
@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.speaker)
def test_speech_is_16_khz_mono_of_a_plausible_length_and_level(speak, voice):
    require(voice)
    wave = speak(TEXT, voice)
    assert wave.dtype == np.float32
    assert wave.ndim == 1
    assert 0.15 < len(wave) / 16_000 / len(TEXT.split()) < 0.5
    assert 0.02 < augment.rms(wave) < 0.1
    assert np.abs(wave).max() < 1.0


@pytest.mark.slow
@pytest.mark.parametrize("voice", VOICES, ids=lambda voice: voice.speaker)
def test_rate_shortens_and_volume_scales(speak, voice):
    require(voice)
    normal = speak(TEXT, voice)
    fast = speak(TEXT, voice, Delivery(rate=1.3))
    soft = speak(TEXT, voice, Delivery(volume=0.25))
    assert 0.65 < len(fast) / len(normal) < 0.9
    assert augment.rms(soft) == pytest.approx(0.25 * augment.rms(normal), rel=0.1)


@pytest.mark.slow
@pytest.mark.parametrize("voice", [v for v in VOICES if v.supports_prosody], ids=lambda voice: voice.speaker)
def test_pitch_moves_the_fundamental(speak, voice):
    require(voice)
    import librosa

    def pitch(delivery):
        f0, voiced, _ = librosa.pyin(speak(TEXT, voice, delivery), fmin=50, fmax=500, sr=16_000)
        return np.median(f0[voiced])

    ratio = pitch(Delivery(pitch=1.25, pitch_range=0.3)) / pitch(Delivery(pitch=0.9, pitch_range=0.3))
    assert ratio == pytest.approx(1.25 / 0.9, rel=0.1)


@pytest.mark.slow
def test_a_text_without_words_is_an_error(speak):
    voice = Voice("hibari", "heart")
    require(voice)
    with pytest.raises(ValueError, match="nothing to hear"):
        speak("", voice)


@pytest.fixture
def tone():
    return (0.1 * np.sin(2 * np.pi * 440 * np.arange(32_000) / 16_000)).astype(np.float32)


def test_augmentation_is_fixed_by_its_seed_and_leaves_the_input_alone(tone):
    before = tone.copy()
    for seed in range(40):
        first = augment.augment(tone, np.random.default_rng(seed), 1.0)
        again = augment.augment(tone, np.random.default_rng(seed), 1.0)
        assert np.array_equal(first, again)
        assert first.dtype == np.float32
        assert np.isfinite(first).all()
        assert np.abs(first).max() <= 1.0
        assert 0.9 < len(first) / len(tone) < 1.1
    assert np.array_equal(tone, before)
    assert augment.augment(tone, np.random.default_rng(0), 0.0) is tone


@pytest.mark.parametrize("kind", augment.NOISES)
def test_noise_has_the_asked_level(tone, kind):
    noisy = augment.add_noise(tone, kind, 10.0, np.random.default_rng(1))
    snr = 20 * np.log10(augment.rms(tone) / augment.rms(noisy - tone))
    assert snr == pytest.approx(10.0, abs=0.1)


def test_the_telephone_band_drops_what_lies_outside():
    seconds = np.arange(16_000) / 16_000
    low = np.sin(2 * np.pi * 80 * seconds).astype(np.float32)
    middle = np.sin(2 * np.pi * 1000 * seconds).astype(np.float32)
    assert augment.rms(augment.telephone(low)) < 0.05 * augment.rms(low)
    assert augment.rms(augment.telephone(middle)) > 0.9 * augment.rms(middle)


def test_speed_changes_length_and_reverb_and_clipping_keep_it(tone):
    assert len(augment.change_speed(tone, 1.25)) == pytest.approx(len(tone) / 1.25, abs=2)
    assert len(augment.reverb(tone, 0.3, 0.4, np.random.default_rng(0))) == len(tone)
    assert np.abs(augment.clip(tone, 0.5)).max() == pytest.approx(0.05, rel=0.01)
