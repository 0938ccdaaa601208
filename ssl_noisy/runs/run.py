# SPDX-License-Identifier: Apache-2.0
"""The story of a run, from its settings to its result. The commands call `run`."""

import dataclasses
import os

from ssl_noisy import devices, files, networks
from ssl_noisy.data import label_noise
from ssl_noisy.errors import UserError
from ssl_noisy.runs import (
    checkpoint,
    evaluation,
    folder,
    frozen,
    image_statistics,
    label_report,
    labeling,
    processes,
    progress,
    removal,
    rounds,
    trackers,
)
from ssl_noisy.runs.session import Session, track_finished
from ssl_noisy.runs.training import Training, make_learner


def run(settings, stream=None, dataset=None):
    """Trains as `settings` say, resumes the run, or returns its result if it is finished.

    Runs on the same data can share it, which saves the time and memory of loading it again:

    ```python
    dataset = labeling.load_dataset(settings)
    for seed in range(5):
        run(dataclasses.replace(settings, seed=seed), dataset=dataset)
    ```

    Args:
        settings: A `Settings`.
        stream: Text stream for progress; None is standard output.
        dataset: The `Dataset` that `labeling.load_dataset` returns for these settings. None loads
            it. The results are identical.

    Returns:
        The content of the run's `result.json`, a dict. With `settings.baseline`, the baseline's
        result is under `baseline`.

    Raises:
        UserError: For a mistake, with one line that says how to fix it. If a setting is wrong,
            nothing is written.
        Interrupted: On the first SIGINT, SIGTERM or SIGHUP, after saving.
    """
    with processes.joined(settings) as here:
        return _run(here, stream, dataset)


def _run(settings, stream, dataset):
    run_dir = settings.run_dir or settings.default_run_dir()
    if settings.teacher:  # only that of a round is relative to the folder of its training
        settings = dataclasses.replace(settings, teacher=os.path.abspath(settings.teacher))
    finished = folder.look_into(run_dir, settings)
    if finished is not None:
        if settings.baseline:
            beside = os.path.join(run_dir, folder.BASELINE)
            track_finished(settings.for_baseline(), beside, finished["baseline"])
        if networks.is_head(settings.network):
            fingerprint = finished["features"]["fingerprint"]
            frozen.check_unchanged(settings.features, fingerprint, run_dir)
        track_finished(settings, run_dir, finished)
        return finished
    networks.check_there(settings.network, settings.weights)
    trackers.check(settings.logger)
    devices.check(settings.num_devices, settings.num_processes)
    if dataset is None:
        dataset = labeling.load_dataset(settings)
    labeling.check_dataset(settings, dataset)
    dataset = labeling.correct(settings, dataset, run_dir)
    labeling.check_corrections(settings, dataset, run_dir)
    progress.tell(dataset.notes, stream)
    label_report.check_features(settings, dataset)
    if settings.keep_best and dataset.validation_images is None:
        raise UserError(
            f"--keep_best needs a validation split, which {dataset.name!r} lacks here. Use "
            "--validation_split, or leave it out."
        )
    labels = labeling.choose(settings, dataset, run_dir)
    task = frozen.make_task(settings, dataset, labels)
    try:
        with devices.used(settings.num_devices, settings.num_processes):
            return _train(Training(settings, run_dir, dataset, labels, task, stream))
    except checkpoint.Diverged as error:
        if folder.discard(run_dir):
            advice = f"Nothing was saved, so a run with other flags can use {run_dir}."
        else:
            advice = f"To change flags, choose another --run_dir: {run_dir} keeps what was saved."
        raise UserError(f"{error} {advice}") from error


def _train(training):
    """Trains what `training` builds on, then the training itself, and returns its result."""
    settings, run_dir, notes = training.settings, training.run_dir, []
    # With several rounds, mistakes in the first and the last fail before anything is written.
    last_round, first_round = rounds.last(training), rounds.first(training)
    learner = make_learner(first_round.settings, training.task, notes, first_round.run_dir)
    remover, removed = removal.prepare(first_round, learner), None
    files.make_folder(training.run_dir)
    with folder.only_process(training.run_dir):
        # Another process may have begun here since `run` looked.
        folder.look_into(training.run_dir, training.settings)
        folder.begin(training.run_dir, training.settings)
        frozen.begin(training.settings, training.run_dir)
        labeling.write(training.run_dir, training.dataset, training.labels)
        baseline = _baseline(training)
        if settings.student:
            del learner, remover  # and their images from the device, where each round puts them
            earlier = rounds.train_earlier(training, train=_train)
            training, notes, remover = last_round, [], None
            learner = make_learner(training.settings, training.task, notes, run_dir)
        if remover is not None:
            removed = remover.find(train=_train)
            training = removed.apply(training, learner)
            learner = make_learner(training.settings, training.task)
        spent = 0.0
        if removed is not None and training.settings.max_seconds is not None:
            spent = removal.seconds(training.run_dir)
        session = Session(training, learner, spent)
        for line in [*notes, *_notes(training, removed)]:
            session.progress.note(line)
        session.train()
        result = _result(training, learner, session, removed, baseline)
        if settings.student:
            result = rounds.summarized(settings, earlier, result)
        session.finish(result)
    return result


def _end(settings, session):
    """Returns what a result says of its model and its end, if they are not the usual ones."""
    found = {}
    if settings.keep_best:
        names = ("step", "epoch", "validation_accuracy")
        found["model_of"] = {name: session.chosen[name] for name in names}
    if settings.max_seconds is not None:
        is_over = session.clock.is_over
        found["stopped_by_max_seconds_at_step"] = session.done if is_over else None
    return found


def _baseline(training):
    """Returns the result of the baseline, after training it if necessary; None without one."""
    if not training.settings.baseline:
        return None
    baseline = training.part(folder.BASELINE, training.settings.for_baseline())
    finished = folder.look_into(baseline.run_dir, baseline.settings)
    if finished is None:
        return _train(baseline)
    track_finished(baseline.settings, baseline.run_dir, finished)
    return finished


def _notes(training, removed):
    """Yields what a user should know about the labels before the training starts."""
    if removed is not None:
        yield removed.describe(training.settings.resolved().steps)
    noise = labeling.noise_summary(training.dataset, training.labels)
    if noise is not None:
        yield label_noise.describe(noise, training.dataset.class_names)


def _result(training, learner, session, removed, baseline):
    """Returns the content of `result.json`, after writing the report on the labels."""
    result = evaluation.result(training, learner, session.counted)
    result.update(_end(training.settings, session))
    if networks.is_head(training.settings.network):
        described = frozen.describe(training.settings.features)
        result["features"] = {"num_features": training.task.image_shape[0], **described}
        result["begins_with"] = f"frozen features of {described['extractor']}"
        result["network"] += f" on features of {described['extractor']}"
    if training.dataset.notes:
        result["data_notes"] = list(training.dataset.notes)
    if training.dataset.unreadable:
        result["unreadable_files"] = training.dataset.unreadable
    noise = labeling.noise_summary(training.dataset, training.labels)
    if noise is not None:
        result["noise"] = noise
    noise = labeling.validation_noise_summary(training.dataset, training.labels)
    if noise is not None:
        result["validation_noise"] = noise
    statistics = learner.image_statistics()
    if statistics:
        image_statistics.write(training.run_dir, training.dataset, statistics)
    label_quality = label_report.examine(training, learner, removed)
    if label_quality is not None:
        result["label_quality"] = label_quality
    if removed is not None:
        result["removed_labels"] = removed.summary()
    if baseline is not None:
        result["baseline"] = baseline
    return result
