-- A study as Optuna 2.10.1 stores it: the output of sqlite3's .dump.
BEGIN TRANSACTION;
CREATE TABLE alembic_version (
	version_num VARCHAR(32) NOT NULL, 
	CONSTRAINT alembic_version_pkc PRIMARY KEY (version_num)
);
INSERT INTO "alembic_version" VALUES('v2.6.0.a');
CREATE TABLE studies (
	study_id INTEGER NOT NULL, 
	study_name VARCHAR(512) NOT NULL, 
	PRIMARY KEY (study_id)
);
INSERT INTO "studies" VALUES(1,'maskrcnn-thresholds');
CREATE TABLE study_directions (
	study_direction_id INTEGER NOT NULL, 
	direction VARCHAR(8) NOT NULL, 
	study_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	PRIMARY KEY (study_direction_id), 
	UNIQUE (study_id, objective), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "study_directions" VALUES(1,'MAXIMIZE',1,0);
CREATE TABLE study_system_attributes (
	study_system_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_system_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE study_user_attributes (
	study_user_attribute_id INTEGER NOT NULL, 
	study_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (study_user_attribute_id), 
	UNIQUE (study_id, "key"), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
CREATE TABLE trial_heartbeats (
	trial_heartbeat_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	heartbeat DATETIME NOT NULL, 
	PRIMARY KEY (trial_heartbeat_id), 
	UNIQUE (trial_id), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_intermediate_values (
	trial_intermediate_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	step INTEGER NOT NULL, 
	intermediate_value FLOAT NOT NULL, 
	PRIMARY KEY (trial_intermediate_value_id), 
	UNIQUE (trial_id, step), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_params (
	param_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	param_name VARCHAR(512), 
	param_value FLOAT, 
	distribution_json TEXT, 
	PRIMARY KEY (param_id), 
	UNIQUE (trial_id, param_name), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_params" VALUES(1,1,'fg_iou_thresh',4.66808801881029578062e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(2,1,'rpn_positive_iou_thresh',8.16097348032647440518e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(3,1,'rpn_negative_iou_thresh',1.00034312445203471542e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(4,1,'fpn_grad_flow',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(5,2,'fg_iou_thresh',3.36935437907519119704e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(6,2,'rpn_positive_iou_thresh',6.55878063413301237716e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(7,2,'rpn_negative_iou_thresh',2.0366821811291435651e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(8,2,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(9,3,'fg_iou_thresh',4.67677805761317899602e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(10,3,'rpn_positive_iou_thresh',8.05565850119027815345e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(11,3,'rpn_negative_iou_thresh',1.61335674919455246412e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(12,3,'fpn_grad_flow',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(13,4,'fg_iou_thresh',5.6818700407136080166e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(14,4,'rpn_positive_iou_thresh',7.2519144071013807995e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(15,4,'rpn_negative_iou_thresh',2.67606948533725519379e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(16,4,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(17,5,'fg_iou_thresh',6.20297827470214668821e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(18,5,'rpn_positive_iou_thresh',8.90478472715819258098e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(19,5,'rpn_negative_iou_thresh',1.94027253447772884964e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(20,5,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(21,6,'fg_iou_thresh',6.57842665401538906344e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(22,6,'rpn_positive_iou_thresh',6.25513263410933384456e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(23,6,'rpn_negative_iou_thresh',1.11716434969864719661e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(24,6,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(25,7,'fg_iou_thresh',0.33933873353322,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(26,7,'rpn_positive_iou_thresh',7.26332287501515683203e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(27,7,'rpn_negative_iou_thresh',3.87366859045150668805e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(28,7,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(29,8,'fg_iou_thresh',4.26206252402425156411e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(30,8,'rpn_positive_iou_thresh',8.05950278304475076218e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(31,8,'rpn_negative_iou_thresh',3.50387701569211951202e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(32,8,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(33,9,'fg_iou_thresh',6.95544435562597818112e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(34,9,'rpn_positive_iou_thresh',8.24449696313951818638e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(35,9,'rpn_negative_iou_thresh',1.84133197619321564708e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(36,9,'fpn_grad_flow',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(37,10,'fg_iou_thresh',4.79157410470362032928e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(38,10,'rpn_positive_iou_thresh',8.72578650927928745062e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(39,10,'rpn_negative_iou_thresh',1.88084244512103870849e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(40,10,'fpn_grad_flow',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(41,11,'fg_iou_thresh',3.0774678314811881874e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(42,11,'rpn_positive_iou_thresh',8.03650659881967266429e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(43,11,'rpn_negative_iou_thresh',1.63488434800017734538e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(44,11,'fpn_grad_flow',1.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
INSERT INTO "trial_params" VALUES(45,12,'fg_iou_thresh',5.70238257109112467446e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.3, "high": 0.7}}');
INSERT INTO "trial_params" VALUES(46,12,'rpn_positive_iou_thresh',7.23513150178423769531e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.6, "high": 0.9}}');
INSERT INTO "trial_params" VALUES(47,12,'rpn_negative_iou_thresh',2.84246143765155112603e-01,'{"name": "UniformDistribution", "attributes": {"low": 0.1, "high": 0.4}}');
INSERT INTO "trial_params" VALUES(48,12,'fpn_grad_flow',0.0,'{"name": "CategoricalDistribution", "attributes": {"choices": [true, false]}}');
CREATE TABLE trial_system_attributes (
	trial_system_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_system_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_user_attributes (
	trial_user_attribute_id INTEGER NOT NULL, 
	trial_id INTEGER, 
	"key" VARCHAR(512), 
	value_json TEXT, 
	PRIMARY KEY (trial_user_attribute_id), 
	UNIQUE (trial_id, "key"), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
CREATE TABLE trial_values (
	trial_value_id INTEGER NOT NULL, 
	trial_id INTEGER NOT NULL, 
	objective INTEGER NOT NULL, 
	value FLOAT NOT NULL, 
	PRIMARY KEY (trial_value_id), 
	UNIQUE (trial_id, objective), 
	FOREIGN KEY(trial_id) REFERENCES trials (trial_id)
);
INSERT INTO "trial_values" VALUES(1,1,0,0.1971);
INSERT INTO "trial_values" VALUES(2,2,0,0.14259);
INSERT INTO "trial_values" VALUES(3,3,0,0.19823);
INSERT INTO "trial_values" VALUES(4,5,0,0.12333);
INSERT INTO "trial_values" VALUES(5,6,0,0.1142);
INSERT INTO "trial_values" VALUES(6,7,0,0.14142);
INSERT INTO "trial_values" VALUES(7,8,0,0.14695);
INSERT INTO "trial_values" VALUES(8,9,0,0.15628);
INSERT INTO "trial_values" VALUES(9,10,0,0.19478);
INSERT INTO "trial_values" VALUES(10,11,0,0.14018);
INSERT INTO "trial_values" VALUES(11,12,0,0.18731);
CREATE TABLE trials (
	trial_id INTEGER NOT NULL, 
	number INTEGER, 
	study_id INTEGER, 
	state VARCHAR(8) NOT NULL, 
	datetime_start DATETIME, 
	datetime_complete DATETIME, 
	PRIMARY KEY (trial_id), 
	FOREIGN KEY(study_id) REFERENCES studies (study_id)
);
INSERT INTO "trials" VALUES(1,0,1,'COMPLETE','2026-11-24 15:34:02.227391','2026-11-24 15:34:02.603199');
INSERT INTO "trials" VALUES(2,1,1,'COMPLETE','2026-11-24 15:34:02.704763','2026-11-24 15:34:03.027353');
INSERT INTO "trials" VALUES(3,2,1,'COMPLETE','2026-11-24 15:34:03.100151','2026-11-24 15:34:03.435944');
INSERT INTO "trials" VALUES(4,3,1,'FAIL','2026-11-24 15:34:03.499460','2026-11-24 15:34:03.760080');
INSERT INTO "trials" VALUES(5,4,1,'COMPLETE','2026-11-24 15:34:03.796905','2026-11-24 15:34:04.119130');
INSERT INTO "trials" VALUES(6,5,1,'COMPLETE','2026-11-24 15:34:04.235902','2026-11-24 15:34:04.597940');
INSERT INTO "trials" VALUES(7,6,1,'COMPLETE','2026-11-24 15:34:04.711041','2026-11-24 15:34:05.101932');
INSERT INTO "trials" VALUES(8,7,1,'COMPLETE','2026-11-24 15:34:05.155050','2026-11-24 15:34:05.443161');
INSERT INTO "trials" VALUES(9,8,1,'COMPLETE','2026-11-24 15:34:05.545282','2026-11-24 15:34:05.998274');
INSERT INTO "trials" VALUES(10,9,1,'COMPLETE','2026-11-24 15:34:06.068326','2026-11-24 15:34:06.303716');
INSERT INTO "trials" VALUES(11,10,1,'COMPLETE','2026-11-24 15:34:06.396029','2026-11-24 15:34:06.747372');
INSERT INTO "trials" VALUES(12,11,1,'COMPLETE','2026-11-24 15:34:06.861688','2026-11-24 15:34:07.189200');
CREATE TABLE version_info (
	version_info_id INTEGER NOT NULL, 
	schema_version INTEGER, 
	library_version VARCHAR(256), 
	PRIMARY KEY (version_info_id), 
	CHECK (version_info_id=1)
);
INSERT INTO "version_info" VALUES(1,12,'2.10.1');
CREATE UNIQUE INDEX ix_studies_study_name ON studies (study_name);
COMMIT;
