// dockerode against one engine: every way it has of talking to one. Run as
//   node dockerode_suite.js SOCKET REGISTRY VIEW
// with NODE_PATH leading to dockerode. Ends with code 0 and "all well", or throws.
'use strict';

const assert = require('node:assert/strict');
const { PassThrough } = require('node:stream');
const { once } = require('node:events');
const Docker = require('dockerode');
const tar = require('tar-stream');

const [socketPath, registry, view] = process.argv.slice(2);
const docker = new Docker({ socketPath });
const IMAGE = 'busybox';

const sections = {};

// A stream's bytes until it ends.
async function text(stream) {
  let all = '';
  for await (const chunk of stream) all += chunk;
  return all;
}

// A stream with frames, parted into [stdout, stderr].
async function parted(stream) {
  const out = new PassThrough();
  const err = new PassThrough();
  docker.modem.demuxStream(stream, out, err);
  stream.on('end', () => { out.end(); err.end(); });
  stream.on('close', () => { out.end(); err.end(); });
  return Promise.all([text(out), text(err)]);
}

function packed(files) {
  const pack = tar.pack();
  for (const [name, content] of Object.entries(files)) pack.entry({ name }, content);
  pack.finalize();
  return pack;
}

async function unpacked(stream) {
  const files = {};
  const extract = tar.extract();
  extract.on('entry', (header, entry, next) => {
    text(entry).then((content) => { files[header.name] = content; next(); });
  });
  stream.pipe(extract);
  await once(extract, 'finish');
  return files;
}

function progress(stream) {
  return new Promise((resolve, reject) => {
    const seen = [];
    docker.modem.followProgress(stream, (err, output) => (err ? reject(err) : resolve([output, seen])), (event) => seen.push(event));
  });
}

function create(command, options = {}) {
  return docker.createContainer({ Image: IMAGE, Cmd: command, ...options });
}

async function refused(promise, status, words) {
  await assert.rejects(promise, (err) => {
    assert.equal(err.statusCode, status, err.message);
    assert.match(err.message, words);
    return true;
  });
}

sections.engine = async () => {
  assert.equal((await docker.ping()).toString(), 'OK');
  assert.equal((await docker.version()).ApiVersion, '1.50');
  assert.equal((await docker.info()).OSType, 'linux');
  assert.ok((await docker.df()).LayersSize > 0);
};

sections.run = async () => {
  const output = new PassThrough();
  const said = text(output);
  const [result, container] = await docker.run(IMAGE, ['sh', '-c', 'echo hello; exit 4'], output, { Tty: true });
  assert.equal(result.StatusCode, 4);
  assert.equal(await said, 'hello\r\n');
  await container.remove();
  const out = new PassThrough();
  const err = new PassThrough();
  const both = Promise.all([text(out), text(err)]);
  // The library asks for the exit code after the start: by then this container may have removed itself.
  const [, split] = await docker.run(IMAGE, ['sh', '-c', 'echo out; echo err >&2'], [out, err], {
    Tty: false, HostConfig: { AutoRemove: true },
  });
  assert.deepEqual(await both, ['out\n', 'err\n']);
  assert.ok(split.id);
};

sections.life = async () => {
  const container = await create(['sh', '-c', 'touch /made; trap "exit 5" TERM; while :; do sleep 0.1; done'], {
    name: 'rode', Labels: { by: 'dockerode' }, ExposedPorts: { '80/tcp': {} },
    HostConfig: { PortBindings: { '80/tcp': [{ HostPort: '18993' }] }, Memory: 64 << 20 },
  });
  await container.start();
  let shown = await container.inspect();
  assert.equal(shown.State.Running, true);
  assert.equal(shown.HostConfig.PortBindings['80/tcp'][0].HostPort, '18993');
  assert.equal((await container.inspect({ size: true })).SizeRootFs > 0, true);
  const listed = await docker.listContainers({ filters: { label: ['by=dockerode'] } });
  assert.deepEqual(listed.map((each) => each.Id), [container.id]);
  assert.deepEqual((await docker.listContainers({ filters: '{"label": ["by=nobody"]}' })), []);
  await container.pause();
  assert.equal((await container.inspect()).State.Status, 'paused');
  await container.unpause();
  await container.update({ Memory: 96 << 20, MemorySwap: -1 });
  await container.rename({ name: 'rode-again' });
  shown = await container.inspect();
  assert.equal(shown.HostConfig.Memory, 96 << 20);
  assert.match(shown.Name, /\/rode-again$/);
  assert.equal((await container.top({ ps_args: 'aux' })).Titles.includes('COMMAND'), true);
  while (!(await container.changes()).some((change) => change.Path === '/made')) await new Promise(setImmediate);
  await container.restart({ t: 5 });
  await container.stop({ t: 5 });
  assert.equal((await container.wait()).StatusCode, 5);
  await container.start();
  await container.kill({ signal: 'SIGKILL' });
  assert.equal((await container.wait({ condition: 'not-running' })).StatusCode, 137);
  await refused(container.kill(), 409, /is not running/);
  await container.remove({ v: true });
  await refused(container.inspect(), 404, /No such container/);
  await refused(docker.createContainer({ Image: 'nothing:here' }), 404, /No such image/);
};

sections.attach = async () => {
  const container = await create(['cat'], { OpenStdin: true, StdinOnce: true, AttachStdin: true });
  const stream = await container.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
  const said = parted(stream);
  await container.start();
  stream.write('one\n');
  stream.end('two\n'); // the half-close ends cat, and what it says still comes
  assert.deepEqual(await said, ['one\ntwo\n', '']);
  assert.equal((await container.wait()).StatusCode, 0);
  await container.remove();

  const terminal = await create(['sh'], { Tty: true, OpenStdin: true });
  const shell = await terminal.attach({ stream: true, hijack: true, stdin: true, stdout: true, stderr: true });
  const typed = text(shell);
  await terminal.start();
  await terminal.resize({ h: 31, w: 91 });
  shell.write('stty size; exit 3\n');
  assert.equal((await terminal.wait()).StatusCode, 3);
  assert.match(await typed, /31 91/);
  await terminal.remove();
};

sections.exec = async () => {
  const container = await create(['sleep', '600']);
  await container.start();
  let exec = await container.exec({ Cmd: ['sh', '-c', 'cat; echo err >&2; exit 6'], AttachStdin: true, AttachStdout: true, AttachStderr: true });
  let stream = await exec.start({ hijack: true, stdin: true });
  const said = parted(stream);
  stream.end('x'.repeat(300000)); // more than any buffer on the way
  const [out, err] = await said;
  assert.equal(out.length, 300000);
  assert.equal(err, 'err\n');
  const shown = await exec.inspect();
  assert.equal(shown.ExitCode, 6);
  assert.equal(shown.Running, false);

  exec = await container.exec({ Cmd: ['sh', '-c', 'echo $A; pwd; id -u'], AttachStdout: true, Env: ['A=b'], WorkingDir: '/tmp', User: 'nobody' });
  stream = await exec.start({ Detach: false, Tty: false });
  assert.deepEqual(await parted(stream), ['b\n/tmp\n65534\n', '']);

  exec = await container.exec({ Cmd: ['sh'], AttachStdin: true, AttachStdout: true, Tty: true });
  stream = await exec.start({ hijack: true, stdin: true, Tty: true });
  const typed = text(stream);
  await exec.resize({ h: 20, w: 70 });
  stream.write('stty size\nexit\n');
  assert.match(await typed, /20 70/);
  await container.remove({ force: true });
};

sections.logs = async () => {
  const container = await create(['sh', '-c', 'echo one; echo two >&2; sleep 0.3; echo three']);
  await container.start();
  const followed = await container.logs({ follow: true, stdout: true, stderr: true });
  assert.deepEqual(await parted(followed), ['one\nthree\n', 'two\n']);
  const once_ = await container.logs({ stdout: true, tail: 1, timestamps: true });
  assert.match(once_.subarray(8).toString(), /Z three\n$/);
  await container.remove();
};

sections.stats = async () => {
  const container = await create(['sleep', '600']);
  await container.start();
  const one = await container.stats({ stream: false });
  assert.ok(one.memory_stats.usage > 0 && one.precpu_stats.cpu_usage.total_usage >= 0);
  const stream = await container.stats({ stream: true });
  const samples = [];
  let rest = '';
  for await (const chunk of stream) {
    const lines = (rest + chunk).split('\n');
    rest = lines.pop();
    samples.push(...lines.filter(Boolean).map((line) => JSON.parse(line)));
    if (samples.length >= 2) break;
  }
  assert.ok(samples[0].read < samples[1].read);
  await container.remove({ force: true });
};

sections.archives = async () => {
  const container = await create(['true'], { Volumes: { '/data': {} } });
  await container.putArchive(packed({ 'a.txt': 'inside', 'folder/b.txt': 'deeper' }), { path: '/data' });
  const files = await unpacked(await container.getArchive({ path: '/data' }));
  assert.equal(files['data/a.txt'], 'inside');
  assert.equal(files['data/folder/b.txt'], 'deeper');
  const info = await container.infoArchive({ path: '/data/a.txt' });
  const stat = JSON.parse(Buffer.from(info.headers['x-docker-container-path-stat'], 'base64').toString());
  assert.equal(stat.name, 'a.txt');
  assert.equal(stat.size, 6);
  await refused(container.getArchive({ path: '/nothing' }), 404, /Could not find the file/);
  assert.ok((await unpacked(await container.export()))['bin/busybox'] !== undefined);
  await container.remove({ v: true });
};

sections.events = async () => {
  const since = Math.floor(Date.now() / 1000) - 1;
  const stream = await docker.getEvents({ filters: { label: ['heard=rode'] } });
  const heard = [];
  const listening = (async () => {
    for await (const chunk of stream) {
      for (const line of chunk.toString().split('\n').filter(Boolean)) heard.push(JSON.parse(line).Action);
      if (heard.includes('destroy')) break;
    }
  })();
  const container = await create(['true'], { Labels: { heard: 'rode' } });
  await container.start();
  await container.wait();
  await container.remove();
  await listening;
  assert.deepEqual(heard.filter((action) => ['create', 'start', 'die', 'destroy'].includes(action)), ['create', 'start', 'die', 'destroy']);
  const past = await text(await docker.getEvents({ since, until: Math.floor(Date.now() / 1000) + 1, filters: { label: ['heard=rode'] } }));
  assert.match(past, /"die"/);
};

sections.images = async () => {
  const name = `${registry}/rode/image`;
  const [lines, seen] = await progress(await docker.pull(`${name}:1`));
  assert.equal(lines.length, seen.length);
  assert.match(lines.at(-1).status, /^Status: /);
  await refused(docker.pull(`${registry}/rode/nowhere:1`), 404, /not found|manifest unknown/);
  const image = docker.getImage(`${name}:1`);
  const shown = await image.inspect();
  assert.equal(shown.RepoTags[0], `${name}:1`);
  assert.ok((await image.history()).length >= 1);
  await image.tag({ repo: name, tag: '2' });
  const [pushed] = await progress(await docker.getImage(`${name}:2`).push({}));
  assert.ok(pushed.some((line) => line.aux && line.aux.Tag === '2'));
  assert.match((await docker.getImage(`${name}:1`).distribution()).Descriptor.digest, /^sha256:/);
  const listed = await docker.listImages({ filters: { reference: [`${name}:*`] } });
  assert.equal(listed.length, 1);
  const archive = [];
  for await (const chunk of await docker.getImage(`${name}:1`).get()) archive.push(chunk);
  const [loaded] = await progress(await docker.loadImage(Buffer.concat(archive), { quiet: false }));
  assert.match(loaded.map((line) => line.stream || '').join(''), /Loaded image: .*rode\/image:1/);
  const [imported] = await progress(await docker.importImage(packed({ x: 'y' }), { repo: 'rode-import', tag: '1' }));
  assert.match(imported.at(-1).status, /^sha256:/);
  await docker.getImage('rode-import:1').remove();
  for (const tag of ['1', '2']) await docker.getImage(`${name}:${tag}`).remove();
  await refused(docker.getImage(`${name}:1`).inspect(), 404, /No such image/);
};

sections.builds = async () => {
  const context = packed({ Dockerfile: `FROM ${IMAGE}\nARG WHO\nCOPY file /file\nRUN echo $WHO >> /file\nCMD ["cat", "/file"]\n`, file: 'built for ' });
  const [lines] = await progress(await docker.buildImage(context, { t: 'rode-built', buildargs: { WHO: 'rode' }, labels: { rode: 'yes' } }));
  const said = lines.map((line) => line.stream || '').join('');
  assert.match(said, /Successfully tagged rode-built:latest/);
  const output = new PassThrough();
  const answer = text(output);
  const [, container] = await docker.run('rode-built', [], output, { Tty: true });
  assert.equal(await answer, 'built for rode\r\n');
  await container.commit({ repo: 'rode-committed', comment: 'by rode' });
  await container.remove();
  for (const name of ['rode-committed', 'rode-built']) await docker.getImage(name).remove({ force: true });
  const [failed] = await progress(await docker.buildImage(packed({ Dockerfile: `FROM ${IMAGE}\nRUN exit 7\n` }), {}));
  assert.equal(failed.at(-1).errorDetail.code, 7);
  assert.match(failed.at(-1).error, /returned a non-zero code: 7/);
};

sections.networks = async () => {
  const network = await docker.createNetwork({ Name: 'rode-net', Labels: { by: 'rode' }, IPAM: { Config: [{ Subnet: '10.96.7.0/24' }] } });
  const container = await create(['sleep', '600'], view === 'node' ? {} : { HostConfig: {} });
  await container.start();
  if (view === 'node') {
    await network.connect({ Container: container.id, EndpointConfig: { Aliases: ['rode'], IPAMConfig: { IPv4Address: '10.96.7.7' } } });
    const place = (await container.inspect()).NetworkSettings.Networks['rode-net'];
    assert.equal(place.IPAddress, '10.96.7.7');
    assert.deepEqual(Object.keys((await network.inspect()).Containers), [container.id]);
    await refused(network.remove(), 403, /has active endpoints/);
    await network.disconnect({ Container: container.id, Force: true });
  }
  assert.equal((await docker.listNetworks({ filters: { name: ['rode-net'] } })).length, 1);
  await container.remove({ force: true });
  await network.remove();
  await refused(network.inspect(), 404, /not found/);
};

sections.volumes = async () => {
  await docker.createVolume({ Name: 'rode-vol', Labels: { by: 'rode' } });
  const volume = docker.getVolume('rode-vol');
  assert.equal((await volume.inspect()).Labels.by, 'rode');
  assert.equal((await docker.listVolumes({ filters: { label: ['by=rode'] } })).Volumes.length, 1);
  await volume.remove();
  await refused(volume.inspect(), 404, /no such volume/);
};

// The node view of a manager's host passes these on.
sections.services = async () => {
  assert.equal((await docker.listNodes()).length, 3);
  assert.match((await docker.swarmInspect()).JoinTokens.Worker, /^SWMTKN-1-/);
  const made = await docker.createService({
    Name: `rode-${view}`, TaskTemplate: { ContainerSpec: { Image: IMAGE, Command: ['sh', '-c', 'echo up; sleep 600'] } },
    Mode: { Replicated: { Replicas: 2 } },
  });
  const service = docker.getService(made.id);
  const running = async (count) => {
    for (;;) {
      const tasks = await docker.listTasks({ filters: { service: [`rode-${view}`], 'desired-state': ['running'] } });
      if (tasks.length === count && tasks.every((task) => task.Status.State === 'running')) return tasks;
    }
  };
  const tasks = await running(2);
  assert.equal((await docker.getTask(tasks[0].ID).inspect()).ServiceID, made.id);
  const [logged] = await parted(await service.logs({ stdout: true, stderr: true, follow: false }).then((buffer) => {
    const stream = new PassThrough();
    setImmediate(() => stream.end(buffer));
    return stream;
  }));
  assert.match(logged, /up\n/);
  const shown = await service.inspect();
  await service.update({ ...shown.Spec, version: shown.Version.Index, Mode: { Replicated: { Replicas: 1 } } });
  await running(1);
  assert.equal((await docker.listServices({ filters: { name: [`rode-${view}`] } })).length, 1);
  await service.remove();
  await refused(service.inspect(), 404, /not found/);
};

(async () => {
  for (const [name, section] of Object.entries(sections)) {
    const timer = setTimeout(() => { console.error(`${name}: no end in sight`); process.exit(3); }, 60000);
    try {
      await section();
    } catch (err) {
      console.error(`${name}:`, err);
      process.exit(2);
    } finally {
      clearTimeout(timer);
    }
    console.log(`${name}: well`);
  }
  console.log('all well');
  process.exit(0);
})();
