// The official JavaScript client.

import * as k8s from '@kubernetes/client-node';
import assert from 'node:assert/strict';
import { PassThrough } from 'node:stream';

const NS = 'js-client-node';
const GROUP = 'js.example.com';

const config = new k8s.KubeConfig();
config.loadFromDefault();
const core = config.makeApiClient(k8s.CoreV1Api);
const extensions = config.makeApiClient(k8s.ApiextensionsV1Api);
const custom = config.makeApiClient(k8s.CustomObjectsApi);
const objects = k8s.KubernetesObjectApi.makeApiClient(config);
const map = (name, data = {}) => ({ apiVersion: 'v1', kind: 'ConfigMap', metadata: { name, namespace: NS }, data });

async function refused(code, promise) {
  await assert.rejects(promise, (error) => {
    assert.equal(error.code, code, String(error.body));
    return true;
  });
}

async function crud() {
  const made = await core.createNamespacedConfigMap({ namespace: NS, body: map('a', { k: '1' }) });
  assert.ok(made.metadata.creationTimestamp instanceof Date);
  await refused(409, core.createNamespacedConfigMap({ namespace: NS, body: map('a') }));
  made.data.k = '2';
  const replaced = await core.replaceNamespacedConfigMap({ namespace: NS, name: 'a', body: made });
  assert.deepEqual(replaced.data, { k: '2' });
  await refused(409, core.replaceNamespacedConfigMap({ namespace: NS, name: 'a', body: made }));
  const patch = (body, type) =>
    core.patchNamespacedConfigMap({ namespace: NS, name: 'a', body }, k8s.setHeaderOptions('Content-Type', type));
  const merged = await patch({ data: { m: '3' } }, k8s.PatchStrategy.MergePatch);
  assert.deepEqual(merged.data, { k: '2', m: '3' });
  const json = await patch([{ op: 'remove', path: '/data/m' }], k8s.PatchStrategy.JsonPatch);
  assert.deepEqual(json.data, { k: '2' });
  const strategic = await patch({ metadata: { labels: { t: 'x' } } }, k8s.PatchStrategy.StrategicMergePatch);
  assert.equal(strategic.metadata.labels.t, 'x');
  const list = await core.listNamespacedConfigMap({ namespace: NS, labelSelector: 't=x' });
  assert.deepEqual(list.items.map((item) => item.metadata.name), ['a']);
  await core.deleteNamespacedConfigMap({ namespace: NS, name: 'a' });
  await refused(404, core.readNamespacedConfigMap({ namespace: NS, name: 'a' }));
}

async function watched() {
  const seen = [];
  await new Promise((resolve, reject) => {
    const list = () => core.listNamespacedConfigMap({ namespace: NS });
    const informer = k8s.makeInformer(config, `/api/v1/namespaces/${NS}/configmaps`, list);
    const note = (type) => (object) => {
      if (object.metadata.name === 'w') seen.push(type);
      if (type === 'delete' && object.metadata.name === 'w') informer.stop().then(resolve, reject);
    };
    for (const type of ['add', 'update', 'delete']) informer.on(type, note(type));
    informer.on('error', reject);
    informer
      .start()
      .then(() => core.createNamespacedConfigMap({ namespace: NS, body: map('w') }))
      .then(() => core.replaceNamespacedConfigMap({ namespace: NS, name: 'w', body: map('w', { k: '1' }) }))
      .then(() => core.deleteNamespacedConfigMap({ namespace: NS, name: 'w' }))
      .catch(reject);
  });
  assert.deepEqual(seen, ['add', 'update', 'delete']);
}

async function applied() {
  const apply = (manager, value, force) =>
    objects.patch(map('applied', { k: value }), undefined, undefined, manager, force, k8s.PatchStrategy.ServerSideApply);
  await apply('one', 'one');
  await refused(409, apply('two', 'two'));
  const forced = await apply('two', 'two', true);
  assert.equal(forced.data.k, 'two');
}

async function definitions() {
  const schema = {
    type: 'object',
    properties: { spec: { type: 'object', properties: { size: { type: 'integer' } } } },
  };
  const body = {
    apiVersion: 'apiextensions.k8s.io/v1',
    kind: 'CustomResourceDefinition',
    metadata: { name: `cranks.${GROUP}` },
    spec: {
      group: GROUP,
      scope: 'Namespaced',
      names: { kind: 'Crank', plural: 'cranks', singular: 'crank' },
      versions: [{ name: 'v1', served: true, storage: true, schema: { openAPIV3Schema: schema } }],
    },
  };
  await extensions.createCustomResourceDefinition({ body });
  await new Promise((resolve, reject) => {
    const watch = new k8s.Watch(config);
    watch
      .watch('/apis/apiextensions.k8s.io/v1/customresourcedefinitions', {}, (_, object, __) => {
        const ready = object.status?.conditions?.some((c) => c.type === 'Established' && c.status === 'True');
        if (object.metadata.name === body.metadata.name && ready) resolve();
      }, (error) => (error && error.name !== 'AbortError' ? reject(error) : resolve()))
      .catch(reject);
  });
  const where = { group: GROUP, version: 'v1', namespace: NS, plural: 'cranks' };
  const crank = { apiVersion: `${GROUP}/v1`, kind: 'Crank', metadata: { name: 'c' }, spec: { size: 3, lost: 1 } };
  const made = await custom.createNamespacedCustomObject({ ...where, body: crank });
  assert.deepEqual(made.spec, { size: 3 });
  const wrong = { ...crank, metadata: { name: 'd' }, spec: { size: 'x' } };
  await refused(422, custom.createNamespacedCustomObject({ ...where, body: wrong }));
  const found = await custom.listNamespacedCustomObject(where);
  assert.deepEqual(found.items.map((item) => item.metadata.name), ['c']);
  await extensions.deleteCustomResourceDefinition({ name: body.metadata.name });
}

async function executed() {
  const collect = (stream) => {
    let text = '';
    stream.on('data', (data) => (text += data));
    return () => text;
  };
  const [stdout, stderr] = [new PassThrough(), new PassThrough()];
  const [out, err] = [collect(stdout), collect(stderr)];
  const status = await new Promise((resolve, reject) => {
    const command = ['sh', '-c', 'echo out; echo err >&2; exit 3'];
    new k8s.Exec(config).exec('default', 'shell', 'shell', command, stdout, stderr, null, false, resolve).catch(reject);
  });
  assert.equal(status.status, 'Failure');
  assert.equal(status.details.causes[0].message, '3');
  assert.deepEqual([out(), err()], ['out\n', 'err\n']);
  const logs = await core.readNamespacedPodLog({ namespace: 'default', name: 'shell' });
  assert.match(logs, /started/);
}

await core.createNamespace({ body: { metadata: { name: NS } } });
await crud();
await watched();
await applied();
await definitions();
await executed();
await core.deleteNamespace({ name: NS });
console.log('ok');
process.exit(0);
